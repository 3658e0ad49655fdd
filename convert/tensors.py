"""Canonical tensors: what a dialect makes of a checkpoint, whatever the names and shapes it was published with.

A trunk tensor is floats or affine codes somewhere in the checkpoint; a layer's experts are read one at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
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


Encoding = Plain | Affine
Weights = np.ndarray | AffineMatrix


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

    def affine(self, key: str, shape: tuple[int, int], encoding: Affine) -> AffineMatrix:
        """A matrix of `shape` in the encoding's format, to be read into."""
        rows, cols = shape
        format_, dtype = encoding.format, ARRAY_DTYPES[encoding.dtype]
        return AffineMatrix(
            format=format_,
            codes=self.array(f"{key}.weight", (rows, format_.words(cols)), ARRAY_DTYPES["U32"]),
            scales=self.array(f"{key}.scales", (rows, format_.groups(cols)), dtype),
            biases=self.array(f"{key}.biases", (rows, format_.groups(cols)), dtype),
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


def read_affine(checkpoint: Checkpoint, encoding: Affine, out: AffineMatrix, first: int | None) -> None:
    """Fill `out` from the three tensors of `encoding`: all of them, or rows from `first` on (see `read_into`)."""
    checkpoint.read_into(encoding.stored, out.codes, first)
    checkpoint.read_into(encoding.scales, out.scales, first)
    checkpoint.read_into(encoding.biases, out.biases, first)
