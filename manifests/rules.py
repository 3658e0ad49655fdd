"""What a manifest must say beyond having the right fields: FORMAT.md's M6 to M20.

Each rule is one function that yields a sentence per violation; its number is in the message and in FORMAT.md.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate, product

from msgspec import UNSET

from . import names, sums
from .digest import DIGEST_BYTES
from .errors import CorruptInputError
from .schema import ExpertLayer, Manifest, Projection

ALIGNMENT = 16 * 1024  # Apple's page; also a multiple of what O_DIRECT wants
MAX_RECORDS = 2**21  # so that digests.bin stays within 64 MiB
PROJECTIONS: tuple[Projection, ...] = ("gate", "up", "down")
AFFINE_PARTS = ("weight", "scales", "biases")  # the arrays of a matrix in an affine format, in order
GRID_PARTS = ("weight", "grids", "scales")

Rule = Callable[[Manifest], Iterator[str]]


def check(manifest: Manifest, file: str) -> None:
    """Raise CorruptInputError for the first broken rule, naming it and `file`."""
    for number, rule in RULES.items():
        for sentence in rule(manifest):
            raise CorruptInputError(f"{file}: {sentence} ({number})")


@contextmanager
def under(number: str) -> Iterator[None]:
    """A block whose CorruptInputErrors mean that rule `number` is broken, and say so."""
    try:
        yield
    except CorruptInputError as error:
        raise CorruptInputError(f"{error} ({number})") from error


def _experts_per_token(manifest: Manifest) -> Iterator[str]:
    model = manifest.model
    if model.num_experts_per_tok > model.num_experts:
        yield f"{model.num_experts_per_tok} experts per token of only {model.num_experts}"


def _heads(manifest: Manifest) -> Iterator[str]:
    full, linear = manifest.model.full_attention, manifest.model.linear_attention
    if full.num_heads % full.num_kv_heads:
        yield f"{full.num_heads} heads do not share {full.num_kv_heads} key/value heads evenly"
    if linear.num_value_heads % linear.num_key_heads:
        yield f"{linear.num_value_heads} value heads do not share {linear.num_key_heads} key heads evenly"
    if full.rotary_dims % 2 or full.rotary_dims > full.head_dim:
        yield f"{full.rotary_dims} rotary dimensions are not an even part of {full.head_dim}"


def _reals(manifest: Manifest) -> Iterator[str]:
    for name, value in (
        ("rms_norm_eps", manifest.model.rms_norm_eps),
        ("rope_theta", manifest.model.full_attention.rope_theta),
    ):
        if not (math.isfinite(value) and value > 0):
            yield f"{name} is {value}, not a positive number"


def _layer_count(manifest: Manifest) -> Iterator[str]:
    if len(manifest.layers) != manifest.model.num_layers:
        yield f"{len(manifest.layers)} layer files for {manifest.model.num_layers} layers"


def _record_count(manifest: Manifest) -> Iterator[str]:
    records = manifest.model.num_layers * manifest.model.num_experts
    if records > MAX_RECORDS:
        yield f"{records} records; a pack has at most {MAX_RECORDS}"


def _layer_names(manifest: Manifest) -> Iterator[str]:
    for index, layer in enumerate(manifest.layers):
        if layer.file != names.layer_file(index):
            yield f"layer {index} is in {layer.file!r} instead of {names.layer_file(index)!r}"


def _projections(manifest: Manifest) -> Iterator[str]:
    for layer in manifest.layers:
        if len(layer.formats) != 3:  # the schema knows the three names
            yield f"{layer.file} names the formats of {sorted(layer.formats)} instead of gate, up and down"


def _components(manifest: Manifest) -> Iterator[str]:
    kinds = (AFFINE_PARTS, GRID_PARTS)
    choices = [[[f"{projection}.{part}" for part in parts] for parts in kinds] for projection in PROJECTIONS]
    for layer in manifest.layers:
        listed = [component.name for component in layer.components]
        projections = (listed[first : first + 3] for first in range(0, len(choices) * 3, 3))
        known = all(three in allowed for three, allowed in zip(projections, choices, strict=True))
        if not known or len(listed) != 9:
            yield f"{layer.file} has components that no formats of gate, up and down give"


def _contiguous(manifest: Manifest) -> Iterator[str]:
    for layer in manifest.layers:
        ends = accumulate((component.size for component in layer.components), initial=0)
        for component, start in zip(layer.components, ends, strict=False):
            if component.offset != start or component.size == 0:
                where = f"{component.size} bytes at {component.offset}"
                yield f"{layer.file} has {component.name} of {where}, which do not follow byte {start}"


def _stride(manifest: Manifest) -> Iterator[str]:
    for layer in manifest.layers:
        if layer.stride != aligned(used_bytes(layer)):
            yield f"{layer.file} has records of {used_bytes(layer)} bytes every {layer.stride} bytes"


def _own_names(manifest: Manifest) -> Iterator[str]:
    if manifest.trunk.file != names.TRUNK_FILE:
        yield f"the trunk is in {manifest.trunk.file!r} instead of {names.TRUNK_FILE!r}"
    if manifest.digests != names.DIGESTS_FILE:
        yield f"the record digests are in {manifest.digests!r} instead of {names.DIGESTS_FILE!r}"


def _safe_names(manifest: Manifest) -> Iterator[str]:
    for file in manifest.files:
        if not names.is_safe(file.name) or file.name.casefold() in (names.MANIFEST_FILE, names.EXPERTS_FOLDER):
            yield f"{file.name!r} is not a name that a file of a pack may have"


def _distinct_names(manifest: Manifest) -> Iterator[str]:
    listed = [file.name for file in manifest.files]
    seen: set[str] = set()
    for name in listed:
        if name.casefold() in seen:
            yield f"{name!r} is listed twice"
        seen.add(name.casefold())
    if listed != sorted(listed):
        yield "the files are not in the order of their names"


def _own_files(manifest: Manifest) -> Iterator[str]:
    sizes = {file.name: file.size for file in manifest.files}
    for name in (names.TRUNK_FILE, names.DIGESTS_FILE, names.SUMS_FILE):
        if name not in sizes:
            yield f"{name!r} is not among the files"
    told = {
        names.DIGESTS_FILE: DIGEST_BYTES * manifest.model.num_layers * manifest.model.num_experts,
        names.SUMS_FILE: sums.size(sums.listed_names(manifest)),
    }
    for name, expected in told.items():
        if sizes.get(name, expected) != expected:
            yield f"{name!r} has {sizes[name]} bytes instead of {expected}"


def _overrides(manifest: Manifest) -> Iterator[str]:
    recipe, layers = manifest.recipe, manifest.model.num_layers
    seen: set[tuple[int, str]] = set()
    for override in () if recipe.overrides is UNSET else recipe.overrides:
        for layer, projection in product(override.layers, override.projections):
            if layer >= layers:
                yield f"the recipe overrides layer {layer} of a model of {layers} layers"
            if (layer, projection) in seen:
                yield f"the recipe overrides {projection} of layer {layer} twice"
            seen.add((layer, projection))


def used_bytes(layer: ExpertLayer) -> int:
    """Bytes of a record before its padding."""
    return sum(component.size for component in layer.components)


def aligned(size: int) -> int:
    """The stride of records of `size` bytes."""
    return -(-size // ALIGNMENT) * ALIGNMENT


RULES: dict[str, Rule] = {
    "M6": _experts_per_token,
    "M7": _heads,
    "M8": _reals,
    "M9": _layer_count,
    "M10": _record_count,
    "M11": _layer_names,
    "M12": _projections,
    "M13": _components,
    "M14": _contiguous,
    "M15": _stride,
    "M16": _own_names,
    "M17": _safe_names,
    "M18": _distinct_names,
    "M19": _own_files,
    "M20": _overrides,
}
