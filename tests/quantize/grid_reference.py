"""Grid formats in plain numpy, float64: levels from FORMAT.md's formulas, reading, and exhaustive search; slow."""

import ml_dtypes
import numpy as np
import quantize_reference as reference

from moepack.layout.books import BOOKS
from moepack.layout.formats import GridFormat
from moepack.quantize.grids import GridMatrix


def levels(format: GridFormat) -> np.ndarray:
    """float64 [grids, codes]."""
    if format.family == "book":
        books = [list(book) for book in BOOKS[format.bits, format.group_size]]
        return np.array(books + [[-level for level in reversed(book)] for book in books], float)
    lowest, zero_unit = (4, 1) if format.bits == 2 else (12, 2)
    grids = [(grid % 16, grid // 16) for grid in range(256)]
    codes = range(2**format.bits)
    return np.array([[step * (8 * code - lowest - zero_unit * zero) for code in codes] for step, zero in grids], float)


def grid_numbers(matrix: GridMatrix) -> np.ndarray:
    """The grid of each group, [rows, groups]."""
    if matrix.format.family == "affine":
        return matrix.grids.astype(int)
    halves = np.stack([matrix.grids % 16, matrix.grids // 16], 2)
    return halves.reshape(len(halves), -1).astype(int)


def pack_grids(grids: np.ndarray, format: GridFormat) -> np.ndarray:
    if format.family == "affine":
        return grids.astype(np.uint8)
    return (grids[:, 0::2] + 16 * grids[:, 1::2]).astype(np.uint8)


def matrix_of(format: GridFormat, codes: np.ndarray, grids: np.ndarray, scales: np.ndarray) -> GridMatrix:
    """From plain codes [rows, cols], grids [rows, groups] and scales [rows]."""
    stored = scales.astype(ml_dtypes.bfloat16).reshape(-1, 1)
    return GridMatrix(format, reference.pack(codes.astype(np.uint8), format.bits), pack_grids(grids, format), stored)


def dequantize(matrix: GridMatrix) -> np.ndarray:
    """float64 [rows, cols]."""
    format = matrix.format
    codes = reference.unpack(matrix.codes, format.bits)
    grids = grid_numbers(matrix).repeat(format.group_size, 1)
    return levels(format)[grids, codes] * matrix.scales.astype(float)


def errors_at(groups: np.ndarray, scale: float, format: GridFormat, importance: np.ndarray) -> np.ndarray:
    """The least weighted squared error of each group [groups, size] with this row scale, over every grid."""
    best = np.full(len(groups), np.inf)
    for grid in levels(format):
        nearest = np.abs(groups[:, :, None] - scale * grid).min(2)
        best = np.minimum(best, (importance * nearest**2).sum(1))
    return best


def scales_around(scale: float, ordinals: int) -> np.ndarray:
    """The positive bfloat16 numbers at most so many places from `scale`, as float64."""
    middle = int(np.array(scale, ml_dtypes.bfloat16).view(np.uint16))
    places = np.arange(max(1, middle - ordinals), middle + ordinals + 1, dtype=np.uint16)
    return places.view(ml_dtypes.bfloat16).astype(float)


def least_error(row: np.ndarray, format: GridFormat, importance: np.ndarray, scales: np.ndarray) -> float:
    """The least weighted squared error of a row over these scales, with every grid for every group."""
    groups, counts = (array.reshape(-1, format.group_size) for array in (row.astype(float), importance.astype(float)))
    return min(float(errors_at(groups, scale, format, counts).sum()) for scale in scales)
