"""Canonical tensors: what a dialect makes of a checkpoint, whatever the names and shapes it was published with.

A trunk tensor is floats or codes somewhere in the checkpoint; a layer's experts are read one at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol

import numpy as np

from ..layout.formats import AffineFormat
from ..layout.tensorfile import ARRAY_DTYPES
from ..manifests.schema import Model
from ..quantize.affine import AffineMatrix
from .checkpoint import Checkpoint
from .families.family import TrunkTensor

FLOATS = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class Plain:
    """Floats of the checkpoint's tensor `stored`; `dtype` is one of FLOATS."""

    stored: str
    dtype: str


@dataclass(frozen=True)
class Affine:
    """Codes, scales and biases in three tensors of the checkpoint; `dtype` is that of scales and biases."""

    stored: str
    scales: str
    biases: str
    format: AffineFormat
    dtype: str


@dataclass(frozen=True)
class Fp8:
    """E4M3 floats of `stored`; each block of `block` (rows, columns) has its factor in `scales`, of dtype `dtype`."""

    stored: str
    scales: str
    block: tuple[int, int]
    dtype: str


class ZeroPoint(Enum):
    """What the zeros of GPTQ codes stand for."""

    MIDPOINT = "midpoint"  # symmetric: half of all codes, whichever of the two conventions the stored zeros follow
    LESS_ONE = "less one"  # checkpoint_format "gptq": one less than the zero is stored
    AS_STORED = "as stored"  # checkpoint_format "gptq_v2"


@dataclass(frozen=True)
class Gptq:
    """GPTQ codes: `stored` (qweight), `zeros` (qzeros) and `scales`, of dtype `dtype`, all transposed.

    `order` is the g_idx that says which group each input belongs to; None if groups are known to follow one another.
    `format` is what such codes are as an affine matrix; None if they have to become floats.
    """

    stored: str
    zeros: str
    scales: str
    order: str | None
    bits: int
    group_size: int
    zero_point: ZeroPoint
    format: AffineFormat | None
    dtype: str


Encoding = Plain | Affine | Fp8 | Gptq
Weights = np.ndarray | AffineMatrix


def name_of(encoding: Encoding) -> str:
    """What a plan calls an encoding: "BF16", "affine4-g64", "fp8 in blocks of 128x128", "gptq4-g128"."""
    if isinstance(encoding, Affine):
        return encoding.format.name
    if isinstance(encoding, Fp8):
        return f"fp8 in blocks of {encoding.block[0]}x{encoding.block[1]}"
    if isinstance(encoding, Gptq):
        return f"gptq{encoding.bits}-g{encoding.group_size}"
    return encoding.dtype


def format_of(encoding: Encoding) -> AffineFormat | None:
    """The affine format as which an encoding is read, None if it is read as floats."""
    return encoding.format if isinstance(encoding, (Affine, Gptq)) else None


@dataclass(frozen=True)
class TrunkEntry:
    """A trunk tensor and where it lies. A norm's multiplier is the stored value plus `shift`."""

    tensor: TrunkTensor
    encoding: Encoding
    shift: float = 0.0


@dataclass(frozen=True)
class LeftOut:
    """Tensors that a text model does without."""

    what: str
    tensors: int
    size: int


class Scratch:
    """One worker's arrays, kept from expert to expert so that their memory is faulted in only once."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """The array under `key`, of this shape and dtype; its content is whatever was there."""
        kept = self._arrays.get(key)
        if kept is None or kept.shape != shape or kept.dtype != dtype:
            kept = self._arrays[key] = np.empty(shape, dtype)
        return kept

    def affine(self, key: str, shape: tuple[int, int], format: AffineFormat, dtype: str) -> AffineMatrix:
        """A matrix of `shape` in `format`, its scales and biases of the safetensors dtype `dtype`, to be read into."""
        rows, cols = shape
        return AffineMatrix(
            format=format,
            codes=self.array(f"{key}.weight", (rows, format.words(cols)), ARRAY_DTYPES["U32"]),
            scales=self.array(f"{key}.scales", (rows, format.groups(cols)), ARRAY_DTYPES[dtype]),
            biases=self.array(f"{key}.biases", (rows, format.groups(cols)), ARRAY_DTYPES[dtype]),
        )


class LayerExperts(Protocol):
    """The routed experts of one layer."""

    @property
    def encodings(self) -> Mapping[str, Encoding]:
        """How each projection ("gate", "up", "down") of every expert is stored."""

    def read(self, expert: int, scratch: Scratch, into: Mapping[str, AffineMatrix]) -> dict[str, Weights]:
        """The three matrices of one expert. Those named in `into` are read right there, the others into `scratch`."""

    def stored(self, expert: int, projection: str) -> str:
        """The name of the checkpoint's tensor that holds a matrix, for messages."""


@dataclass(frozen=True)
class Source:
    """A checkpoint understood: its geometry, its trunk in pack order, its experts layer by layer."""

    checkpoint: Checkpoint
    dialect: Literal["huggingface", "mlx"]
    model: Model
    trunk: tuple[TrunkEntry, ...]
    experts: tuple[LayerExperts, ...]
    left_out: tuple[LeftOut, ...] = field(default=())

    @property
    def expert_encodings(self) -> list[str]:
        """The names of the ways in which the routed experts' matrices are stored."""
        return sorted({name_of(encoding) for layer in self.experts for encoding in layer.encodings.values()})

    @property
    def trunk_encodings(self) -> list[str]:
        """The names of the ways in which the trunk's matrices are stored; vectors are not counted."""
        matrices = (entry.encoding for entry in self.trunk if entry.tensor.role.follows_recipe)
        return sorted(set(map(name_of, matrices)))


def read_affine(checkpoint: Checkpoint, encoding: Affine, out: AffineMatrix, first: int | None) -> None:
    """Fill `out` from the three tensors of `encoding`: all of them, or rows from `first` on (see `read_into`)."""
    checkpoint.read_into(encoding.stored, out.codes, first)
    checkpoint.read_into(encoding.scales, out.scales, first)
    checkpoint.read_into(encoding.biases, out.biases, first)
