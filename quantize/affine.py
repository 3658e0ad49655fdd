"""Quantized matrices: codes with one scale and one bias per group.

This file owns the in-memory form of a weight format and its way back to float32. It promises that the arrays of an
`AffineMatrix` have the shapes its format says. It does not know how codes are chosen.
"""

from dataclasses import dataclass
from typing import Protocol

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..layout.formats import AffineFormat, Format
from . import _native

FLOAT_NAMES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, eq=False)
class AffineMatrix:
    """A quantized matrix [rows, cols]: weight = code * scale + bias, one scale and bias per group of inputs.

    `codes` is uint32 [rows, format.words(cols)]: the codes of a row are one little-endian bit stream, as MLX packs
    them. `scales` and `biases` are [rows, format.groups(cols)], both bfloat16, float16 or float32.
    Raises ValueError when the arrays do not fit together.
    """

    format: AffineFormat
    codes: np.ndarray
    scales: np.ndarray
    biases: np.ndarray

    def __post_init__(self) -> None:
        if self.codes.dtype != np.uint32 or self.codes.ndim != 2:
            raise ValueError(f"codes must be a uint32 matrix, not {self.codes.dtype} {list(self.codes.shape)}")
        if self.scales.dtype.name not in FLOAT_NAMES or self.biases.dtype != self.scales.dtype:
            raise ValueError(f"scales and biases must share one of {FLOAT_NAMES}, not {self.scales.dtype.name}")
        rows, cols = self.shape
        words, groups = (rows, self.format.words(cols)), (rows, self.format.groups(cols))
        whole = self.format.fits(cols) and self.codes.shape == words
        if not whole or self.scales.shape != groups or self.biases.shape != groups:
            shapes = [list(array.shape) for array in (self.codes, self.scales, self.biases)]
            raise ValueError(f"codes, scales and biases of shapes {shapes} are no {self.format.name} matrix")

    @classmethod
    def empty(cls, rows: int, cols: int, format: AffineFormat, dtype: DTypeLike = ml_dtypes.bfloat16) -> "AffineMatrix":
        """A matrix of undefined content. Raises ValueError if `cols` does not divide into whole groups."""
        require_whole_groups(cols, format)
        codes = np.empty((rows, format.words(cols)), np.uint32)
        scales, biases = np.empty((2, rows, format.groups(cols)), dtype)
        return cls(format, codes, scales, biases)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the matrix that this one stands for."""
        return self.codes.shape[0], self.codes.shape[1] * 32 // self.format.bits

    def write_weights(self, weights: NDArray[np.uint8]) -> None:
        """Write the weights as float32 into these bytes, in C order."""
        _native.dequantize(*native_parts(self), weights)


class QuantizedMatrix(Protocol):
    """What every quantized matrix can do, whatever its format."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the matrix that this one stands for."""

    def write_weights(self, weights: NDArray[np.uint8]) -> None:
        """Write the weights as float32 into these bytes, in C order."""


def dequantize(matrix: QuantizedMatrix) -> NDArray[np.float32]:
    """float32 [rows, cols]. Affine: code * scale + bias, the product rounded to float32 before the sum (never fused).

    Grids: row scale * level, which is exact.
    """
    weights = np.empty(matrix.shape, np.float32)
    matrix.write_weights(as_bytes(weights))
    return weights


def require_whole_groups(cols: int, format: Format) -> None:
    """Raise ValueError unless rows of `cols` inputs divide into whole groups of `format` that fill whole words."""
    if not format.fits(cols):
        raise ValueError(f"rows of {cols} inputs do not divide into groups of {format.group_size} ({format.name})")


def native_parts(matrix: AffineMatrix) -> tuple[str, int, int, NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """A matrix as the native code takes it: scale dtype, bits, group size, then codes, scales and biases as bytes."""
    codes, scales, biases = (as_bytes(array) for array in (matrix.codes, matrix.scales, matrix.biases))
    return matrix.scales.dtype.name, matrix.format.bits, matrix.format.group_size, codes, scales, biases


def as_bytes(array: np.ndarray) -> NDArray[np.uint8]:
    """The array's bytes in C order: a view if it is contiguous (always so for outputs), else a copy."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
