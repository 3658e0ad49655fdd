"""The manifest's schema, version 1: the Python rendering of FORMAT.md's section on `manifest.json`.

Decoding is strict: unknown fields, wrong types and sizes out of bounds are refused, so code that holds a `Manifest`
never has to ask again. What needs two fields at once (ranges that follow each other, names that are safe) is
checked by `manifests.rules`.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from . import names

FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Size = Annotated[int, Meta(ge=0, le=2**53)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
FileName = Annotated[str, Meta(max_length=128)]
PackFile = Annotated[str, Meta(pattern=names.whole(f"{names.SAFE}|{names.LAYER}"), max_length=128)]  # by M11 and M17
SourceName = Annotated[str, Meta(max_length=255)]  # what a file system allows
Name = Annotated[str, Meta(max_length=256)]
Layer = Annotated[int, Meta(ge=0, le=4095)]
LayerType = Literal["linear_attention", "full_attention"]
Projection = Literal["gate", "up", "down"]


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every object in the manifest."""


class FullAttention(Record, frozen=True, forbid_unknown_fields=True):
    """Shapes of a gated full-attention layer; `rotary_dims` of each head's `head_dim` are rotated."""

    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    rotary_dims: Count
    rope_theta: float


class LinearAttention(Record, frozen=True, forbid_unknown_fields=True):
    """Shapes of a Gated DeltaNet layer; value head h reads key head h // (num_value_heads / num_key_heads)."""

    num_key_heads: Count
    num_value_heads: Count
    key_head_dim: Count
    value_head_dim: Count
    conv_kernel: Count


class Model(Record, frozen=True, forbid_unknown_fields=True):
    """The text model's geometry: all that an engine needs to run the pack besides its weights."""

    family: Name
    hidden_size: Count
    vocab_size: Count
    layer_types: Annotated[list[LayerType], Meta(min_length=1, max_length=4096)]
    num_experts: Annotated[int, Meta(ge=1, le=65536)]
    num_experts_per_tok: Count
    moe_intermediate_size: Count
    shared_expert_intermediate_size: Count
    full_attention: FullAttention
    linear_attention: LinearAttention
    rms_norm_eps: float
    max_position_embeddings: Count
    tie_word_embeddings: bool

    @property
    def num_layers(self) -> int:
        """How many decoder layers the model has."""
        return len(self.layer_types)


class SourceFile(Record, frozen=True, forbid_unknown_fields=True):
    """One weight file of the checkpoint: its size, its SHA-256, and the BLAKE3 digest of its safetensors header."""

    name: SourceName
    size: Size
    header_blake3: Digest
    sha256: Digest


class Source(Record, frozen=True, forbid_unknown_fields=True):
    """Where the weights came from. `repository` and `revision` are null for a local directory."""

    dialect: Literal["huggingface", "mlx"]
    repository: Name | None
    revision: Name | None
    files: list[SourceFile]


class Override(Record, frozen=True, forbid_unknown_fields=True):
    """Expert matrices that differ from the rest: some projections of some layers, their format and their method."""

    layers: Annotated[list[Layer], Meta(min_length=1, max_length=4096)]
    projections: Annotated[list[Projection], Meta(min_length=1, max_length=3)]
    expert_format: Name
    method: Name


class Calibration(Record, frozen=True, forbid_unknown_fields=True):
    """The calibration that methods went by: its file's digest, and those of its text and of its model."""

    digest: Digest
    text_digest: Digest
    model_digest: Digest


class Recipe(Record, frozen=True, forbid_unknown_fields=True):
    """What was asked of the packer: format and method of the experts, format of the trunk.

    `arithmetic` is the version of the code that chose the bytes. `overrides` is absent if all expert matrices are
    alike, `calibration` if no method needed one.
    """

    expert_format: Name
    method: Name
    trunk_format: Name
    arithmetic: Count
    overrides: Annotated[list[Override], Meta(min_length=1, max_length=12288)] | UnsetType = UNSET
    calibration: Calibration | UnsetType = UNSET


class Component(Record, frozen=True, forbid_unknown_fields=True):
    """One tensor inside every record of a layer; `blake3` is over that component of experts 0, 1, 2, ... joined."""

    name: Name
    offset: Size
    size: Size
    blake3: Digest


class ExpertLayer(Record, frozen=True, forbid_unknown_fields=True):
    """One layer file: `num_experts` records of `stride` bytes; `formats` names the format of each projection."""

    file: FileName
    stride: Size
    formats: dict[Projection, Name]
    components: list[Component]


class File(Record, frozen=True, forbid_unknown_fields=True):
    """Any other file of the pack."""

    name: FileName
    size: Size
    blake3: Digest


class Trunk(Record, frozen=True, forbid_unknown_fields=True):
    """`trunk.safetensors`; `formats` names the format of every quantized tensor, by its canonical name."""

    file: FileName
    formats: dict[Name, Name]


class Manifest(Record, frozen=True, forbid_unknown_fields=True):
    """The single truth about a pack. Every file but `manifest.json` itself is in `files` or in `layers`.

    `checksum` is the BLAKE3 digest of the canonical JSON of all other fields: whoever flips a bit here is found out.
    """

    format: Literal["moepack"]
    version: Literal[1]
    requires: list[Name]
    model: Model
    source: Source
    recipe: Recipe
    layers: list[ExpertLayer]
    trunk: Trunk
    digests: FileName
    files: list[File]
    checksum: Digest
