"""What calibration knows about the inputs of a matrix, and what of it a quantizer is given.

Owns two things: `Moments`, measured second moments in the form in which they are stored; and the shrinking of one
expert's moments, which are noisy where the router seldom goes, toward those of its whole layer. Knows no files.

Shrinking, for an expert seen n times: H = (n H_own + POOL_WEIGHT H_pool) / (n + POOL_WEIGHT), so an expert never seen
has its layer's. Where only the expert's diagonal was kept, H is the pool's correlations on the shrunk diagonal.
Elementwise IEEE operations in a fixed order only: what a pack is made from must not depend on the machine.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .moments import Floats, Sums

Correlations: TypeAlias = NDArray[np.int16]

# Rows for which the pool counts. At n ~ inputs an expert's own moments overfit; 512 was best of 128 to 2048 in
# simulation, and per-expert moments so shrunk beat pooled ones on the trained model.
POOL_WEIGHT = 512
# What correlations are multiplied by before they steer error feedback: measured correlations are too strong by
# sampling noise. Held-out moments, which only judge, keep theirs.
OFF_DIAGONAL = 0.9
# A channel's least importance, relative to the most important one's: weights of channels that are silent in the
# calibration text still have to be representable.
LEAST_IMPORTANCE = 1e-9
CORRELATION_ONE = 32767  # how a correlation of 1 is stored; steps of 3e-5, far below sampling noise


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments: the mean of x x^T over `count` rows.

    `diagonal` is float32 [cols]. `correlations` is int16 [cols * (cols - 1) / 2], the rows of the strict upper
    triangle joined, each H_ij / sqrt(H_ii H_jj) in units of 1 / CORRELATION_ONE; None where they were not kept.
    """

    count: int
    diagonal: Floats
    correlations: Correlations | None = None

    def matrix(self, diagonal: Floats) -> Floats:
        """float32 [cols, cols] with these correlations and another diagonal (scaled by a congruence)."""
        if self.correlations is None:
            raise ValueError("these moments have no correlations")
        roots = np.sqrt(diagonal)
        upper = np.zeros((len(roots), len(roots)), np.float32)
        scaled = roots / np.float32(CORRELATION_ONE)
        for row, (first, last) in enumerate(triangle_rows(len(roots))):
            upper[row, row + 1 :] = self.correlations[first:last] * scaled[row] * roots[row + 1 :]
        matrix = upper + upper.T
        np.fill_diagonal(matrix, diagonal)
        return matrix


@dataclass(frozen=True, eq=False)
class Halves:
    """Moments of the same inputs on two parts of a text: one to fit to, and one `held_out` to judge by."""

    fit: Moments
    held_out: Moments


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """What a quantizer needs to know about the inputs of one matrix.

    `importance` float32 [cols], > 0: the mean square of each input, shrunk. `hessian` float32 [cols, cols]: shrunk
    second moments with that diagonal, None for methods that need none. `held_out`: those of other text, to accept or
    refuse what was fitted.
    """

    importance: Floats
    hessian: Floats | None = None
    held_out: Floats | None = None


def correlations(total: Sums) -> Correlations:
    """The correlations of a sum of x x^T, as Moments stores them; 0 for a channel that is always 0."""
    diagonal = total.diagonal()
    scale = np.divide(1, np.sqrt(diagonal), out=np.zeros_like(diagonal), where=diagonal > 0)
    stored = np.empty(triangle(len(scale)), np.int16)
    for row, (first, last) in enumerate(triangle_rows(len(scale))):
        values = total[row, row + 1 :] * (CORRELATION_ONE * scale[row]) * scale[row + 1 :]
        stored[first:last] = np.clip(np.rint(values), -CORRELATION_ONE, CORRELATION_ONE)
    return stored


def input_statistics(own: Halves, pool: Halves, *, hessians: bool) -> InputStatistics:
    """What a quantizer of an expert's matrix is given, from the expert's own moments and those of its layer.

    Without `hessians`, only the importance, at a fraction of the cost. With them, memory for five float32 matrices
    of cols^2 at most, two of which remain.
    """
    importance = shrunk_diagonal(own.fit, pool.fit)
    if not hessians:
        return InputStatistics(importance)
    hessian = shrunk_matrix(own.fit, pool.fit, importance)
    hessian *= np.float32(OFF_DIAGONAL)
    np.fill_diagonal(hessian, importance)
    held_out = shrunk_matrix(own.held_out, pool.held_out, shrunk_diagonal(own.held_out, pool.held_out))
    return InputStatistics(importance, hessian, held_out)


def shrunk_diagonal(own: Moments, pool: Moments) -> Floats:
    """An expert's diagonal, shrunk toward the pool's; float32 [cols], all > 0."""
    ours, theirs = _weights(own.count)
    diagonal = own.diagonal * ours + pool.diagonal * theirs
    most = diagonal.max()
    least = most * np.float32(LEAST_IMPORTANCE) if most > 0 else np.float32(1)
    return np.maximum(diagonal, least)


def shrunk_matrix(own: Moments, pool: Moments, diagonal: Floats) -> Floats:
    """An expert's second moments, shrunk toward the pool's, float32 [cols, cols] with this (shrunk) diagonal."""
    if own.correlations is None:
        return pool.matrix(diagonal)
    ours, theirs = _weights(own.count)
    matrix = own.matrix(own.diagonal)
    matrix *= ours
    shared = pool.matrix(pool.diagonal)
    shared *= theirs
    matrix += shared
    np.fill_diagonal(matrix, diagonal)
    return matrix


def triangle(cols: int) -> int:
    """How many correlations `cols` inputs have."""
    return cols * (cols - 1) // 2


def triangle_rows(cols: int) -> list[tuple[int, int]]:
    """(first, last + 1) of each row of the strict upper triangle in an array of correlations."""
    starts = np.cumsum([0, *range(cols - 1, -1, -1)]).tolist()
    return list(pairwise(starts))


def _weights(count: int) -> tuple[np.float32, np.float32]:
    return np.float32(count / (count + POOL_WEIGHT)), np.float32(POOL_WEIGHT / (count + POOL_WEIGHT))
