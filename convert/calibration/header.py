"""The header of a calibration file: of what model and what text the statistics are, and where each section lies."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ...manifests import canonical
from ...manifests.errors import CorruptInputError, UnsupportedError
from ...manifests.schema import Count, Digest, Size
from ..sensitivities import Sensitivities
from .sections import ExpertHessians, Shape, section_size

VERSION: Literal[1] = 1
MAX_HEADER_BYTES = 6 * 1024 * 1024
MAX_SECTIONS = 2**15  # of the 397B model, 30,780
LIMITS = canonical.Limits(MAX_HEADER_BYTES, 5 * MAX_SECTIONS + 2**15, MAX_HEADER_BYTES)


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every object in the header."""


class Model(Part, frozen=True, forbid_unknown_fields=True):
    """The model: `digest` is of its configuration and, by samples, of its weights (see identity)."""

    digest: Digest
    tokenizer_digest: Digest
    layers: Annotated[int, Meta(ge=1, le=4096)]
    experts: Annotated[int, Meta(ge=1, le=65536)]
    experts_per_token: Count
    hidden_size: Count
    moe_intermediate_size: Count


class Text(Part, frozen=True, forbid_unknown_fields=True):
    """The text and what of it was used: `tokens` in windows of up to `window`, of which every `held_out`-th judges."""

    digest: Digest
    window: Count
    windows: Count
    held_out: Count
    tokens: Count
    held_out_tokens: Count


class Section(Part, frozen=True, forbid_unknown_fields=True):
    """One compressed section: its bytes in the file and their digest, and its size when it is decompressed."""

    name: Annotated[str, Meta(max_length=64)]
    stored: Size
    size: Size
    blake3: Digest


class Facts(Part, frozen=True, forbid_unknown_fields=True):
    """What a calibration is of. `through` is the digest of the pack whose experts the text went through, if any."""

    model: Model
    text: Text
    through: Digest | None
    expert_hessians: ExpertHessians

    @property
    def shape(self) -> Shape:
        """What the sizes of all sections follow from."""
        model = self.model
        widths = (model.hidden_size, model.moe_intermediate_size)
        return Shape(model.layers, model.experts, *widths, self.expert_hessians)

    @property
    def halves(self) -> tuple[int, int]:
        """How many tokens are fitted to, and how many held out."""
        return self.text.tokens - self.text.held_out_tokens, self.text.held_out_tokens


class Header(Part, frozen=True, forbid_unknown_fields=True):
    """All that stands before the sections, which follow each other in this order.

    `sensitivities` is absent if they were not measured.
    """

    format: Literal["moecal"]
    version: Literal[1]
    facts: Facts
    sections: Annotated[list[Section], Meta(max_length=MAX_SECTIONS)]
    sensitivities: Sensitivities | UnsetType = UNSET


def render(facts: Facts, sections: list[Section], sensitivities: Sensitivities | None = None) -> bytes:
    """The canonical bytes of a header."""
    return canonical.encode(Header("moecal", VERSION, facts, sections, sensitivities or UNSET))


def parse(content: bytes, where: str) -> Header:
    """The header with these bytes. Raises CorruptInputError if it contradicts itself, UnsupportedError if newer."""
    fields: Any = canonical.decode(content, where, LIMITS)
    if not isinstance(fields, dict) or fields.get("format") != "moecal":
        raise CorruptInputError(f"{where} is not the header of a calibration file")
    if fields.get("version") != VERSION:
        raise UnsupportedError(f"{where} has version {fields.get('version')!r:.20}; this moepack reads {VERSION}")
    try:
        header = msgspec.convert(fields, Header)
    except msgspec.ValidationError as error:
        raise CorruptInputError(f"{where}: {error}") from error
    _check(header, where)
    return header


def _check(header: Header, where: str) -> None:
    text = header.facts.text
    if text.held_out_tokens >= text.tokens:
        raise CorruptInputError(f"{where}: {text.held_out_tokens} of {text.tokens} tokens cannot be held out")
    if header.sensitivities and (
        len(header.sensitivities.layers) != header.facts.model.layers or not header.sensitivities.measured
    ):
        raise CorruptInputError(f"{where}: its sensitivities are not those of its model's layers")
    if len(header.sections) != header.facts.shape.count:  # before as many names are made as a header may ask for
        raise CorruptInputError(f"{where}: its sections are not those of its model")
    wanted = header.facts.shape.all_sections()
    found = {section.name: section.size for section in header.sections}
    if list(found) != list(wanted) or len(found) != len(header.sections):
        raise CorruptInputError(f"{where}: its sections are not those of its model")
    for name, fields in wanted.items():
        if found[name] != section_size(fields):
            raise CorruptInputError(f"{where}: section {name!r} has {found[name]} bytes, not {section_size(fields)}")
