"""Error feedback as its paper states it, in float64 numpy: slow, and independent of the native code.

The grids that groups chose are taken from the result under test; that they are the best ones is a test of its own.
"""

import numpy as np
import quantize_reference as reference

from moepack.layout.formats import GridFormat
from moepack.quantize.affine import AffineMatrix
from moepack.quantize.grids import GridMatrix, Matrix


def damped(hessian: np.ndarray, damping: float) -> np.ndarray:
    exact = hessian.astype(np.float64)
    return exact + damping * np.diag(exact).mean() * np.eye(len(exact))


def levels_of(matrix: Matrix) -> np.ndarray:
    """What each code of each weight's group would be read back as, float64 [rows, cols, 2^bits]."""
    codes = np.arange(1 << matrix.format.bits)
    if isinstance(matrix, AffineMatrix):
        scales, biases = (part.astype(np.float64).repeat(matrix.format.group_size, 1) for part in parameters(matrix))
        return scales[..., None] * codes + biases[..., None]
    table = matrix.format.table[chosen_grids(matrix)].repeat(matrix.format.group_size, 1)
    return table * matrix.scales.astype(np.float64)[..., None]


def parameters(matrix: AffineMatrix) -> tuple[np.ndarray, np.ndarray]:
    return matrix.scales, matrix.biases


def chosen_grids(matrix: GridMatrix) -> np.ndarray:
    """Which grid each group uses, [rows, groups]."""
    if matrix.format.grid_bits == 8:
        return matrix.grids
    return np.stack([matrix.grids & 15, matrix.grids >> 4], -1).reshape(len(matrix.grids), -1)


def codes_of(matrix: Matrix) -> np.ndarray:
    return reference.unpack(matrix.codes, matrix.format.bits)


def gptq(weights: np.ndarray, hessian: np.ndarray, damping: float, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes, and each column's weights when its turn came: the paper's loop, with the inverse's Cholesky factor."""
    inverse = np.linalg.inv(damped(hessian, damping))
    factor = np.linalg.cholesky(inverse).T
    current, codes = weights.astype(np.float64), np.zeros(weights.shape, np.int64)
    for column in range(weights.shape[1]):
        distances = np.abs(current[:, column, None] - levels[:, column])
        codes[:, column] = distances.argmin(1)
        nearest = np.take_along_axis(levels[:, column], codes[:, column, None], 1)[:, 0]
        error = (current[:, column] - nearest) / factor[column, column]
        current[:, column + 1 :] -= np.outer(error, factor[column, column + 1 :])
    return codes, current


def group_starts(
    weights: np.ndarray, hessian: np.ndarray, damping: float, matrix: Matrix
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per group, the weights [rows, group] that its grid was chosen for, and how much each column counts, 1/U_jj^2."""
    inverse = np.linalg.inv(damped(hessian, damping))
    factor = np.linalg.cholesky(inverse).T
    levels, codes = levels_of(matrix), codes_of(matrix)
    current, starts = weights.astype(np.float64), []
    for column in range(weights.shape[1]):
        if column % matrix.format.group_size == 0:
            group = slice(column, column + matrix.format.group_size)
            starts.append((current[:, group].copy(), 1 / np.diag(factor)[group] ** 2))
        nearest = np.take_along_axis(levels[:, column], codes[:, column, None], 1)[:, 0]
        error = (current[:, column] - nearest) / factor[column, column]
        current[:, column + 1 :] -= np.outer(error, factor[column, column + 1 :])
    return starts


def best_grid_errors(values: np.ndarray, counts: np.ndarray, format: GridFormat, scales: np.ndarray) -> np.ndarray:
    """Per row, the least weighted squared error that any grid has for a group's values [rows, group]."""
    units = values / scales.astype(np.float64)
    distances = np.abs(units[:, None, :, None] - format.table[None, :, None, :].astype(np.float64)).min(-1)
    return (np.square(distances) * counts).sum(-1).min(1) * np.square(scales[:, 0].astype(np.float64))
