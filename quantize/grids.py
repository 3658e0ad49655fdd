"""Matrices of grids: codes that pick a level of their group's grid, times a scale per row.

This file owns the in-memory form of the two-level affine and codebook formats. It promises that the arrays of a
`GridMatrix` have the shapes its format says. It does not know how grids are chosen.
"""

from dataclasses import dataclass
from typing import TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..layout.formats import GridFormat
from . import _native
from .affine import AffineMatrix, as_bytes, require_whole_groups


@dataclass(frozen=True, eq=False)
class GridMatrix:
    """A quantized matrix [rows, cols]: weight = its row's scale * the level that its code picks from its group's grid.

    `codes` is uint32 [rows, format.words(cols)], packed as in an AffineMatrix. `grids` is uint8
    [rows, format.grid_bytes(cols)]: a byte per group, or two groups' four bits, the first in the low ones. `scales` is
    bfloat16 [rows, 1]. The levels are `format.table`. Raises ValueError when the arrays do not fit together.
    """

    format: GridFormat
    codes: np.ndarray
    grids: np.ndarray
    scales: np.ndarray

    def __post_init__(self) -> None:
        if self.codes.dtype != np.uint32 or self.codes.ndim != 2:
            raise ValueError(f"codes must be a uint32 matrix, not {self.codes.dtype} {list(self.codes.shape)}")
        arrays = (self.codes, self.grids, self.scales)
        wanted = [(dtype, shape) for _, dtype, shape in self.format.parts(*self.shape)]
        found = [(array.dtype.name, array.shape) for array in arrays]
        if not self.format.fits(self.shape[1]) or found != wanted:
            parts = ", ".join(f"{dtype} {list(shape)}" for dtype, shape in found)
            raise ValueError(f"codes, grids and scales that are {parts} are no {self.format.name} matrix")

    @classmethod
    def empty(cls, rows: int, cols: int, format: GridFormat) -> "GridMatrix":
        """A matrix of undefined content. Raises ValueError if `cols` does not fit the format."""
        require_whole_groups(cols, format)
        codes = np.empty((rows, format.words(cols)), np.uint32)
        grids = np.empty((rows, format.grid_bytes(cols)), np.uint8)
        return cls(format, codes, grids, np.empty((rows, 1), ml_dtypes.bfloat16))

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the matrix that this one stands for."""
        return self.codes.shape[0], self.codes.shape[1] * 32 // self.format.bits

    def write_weights(self, weights: NDArray[np.uint8]) -> None:
        """Write the weights as float32 into these bytes, in C order."""
        _native.dequantize_grids(*native_grids(self), weights)


Matrix: TypeAlias = AffineMatrix | GridMatrix


def native_grids(
    matrix: GridMatrix,
) -> tuple[int, int, int, NDArray[np.int16], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """A matrix as the native code takes it: cols, bits, group size, table, then codes, grids and scales as bytes."""
    codes, grids, scales = (as_bytes(array) for array in (matrix.codes, matrix.grids, matrix.scales))
    format_ = matrix.format
    return matrix.shape[1], format_.bits, format_.group_size, format_.table, codes, grids, scales
