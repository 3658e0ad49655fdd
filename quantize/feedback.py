"""Error feedback: what a Hessian says about the order, the weight and the side effects of rounding each column.

This file owns the factorisation of a Hessian, the quantization of a matrix by it, and the error of a layer's output.
It promises the same bytes on every machine: native code, sums in a fixed order. It does not know which method is best.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import _native
from .affine import AffineMatrix, as_bytes
from .grids import GridMatrix

DAMPING = 0.01
"""What is added to a Hessian's diagonal, as a share of its mean: between 0.003 and 0.03 nothing changes by 0.05 dB."""


class HessianError(ValueError):
    """Second moments that are none: NaN or infinite values, not positive semidefinite, or of another matrix."""


@dataclass(frozen=True, eq=False)
class Feedback:
    """A damped Hessian H [cols, cols] as H = R R', with R zero below its diagonal.

    Quantizing from left to right, column j should become w_j + sum over k < j of (w_k - w'_k) R_kj / R_jj, and its
    squared error then counts R_jj^2: with 1/R_jj = U_jj these are the steps of GPTQ (E. Frantar et al.,
    arXiv 2210.17323), in the form of J. Chee et al. (QuIP, arXiv 2307.13304, theorem 6), which needs no inverse.
    `coefficients` are float32 R_kj / R_jj, column panels of 64; `importance` is float32 [cols], R_jj^2 relative to the
    largest. One may serve every matrix that has the same inputs, and several threads at once.
    """

    coefficients: NDArray[np.float32]
    importance: NDArray[np.float32]

    @classmethod
    def of(cls, hessian: NDArray[np.float32], damping: float = DAMPING) -> "Feedback":
        """Factorise float32 [cols, cols], of which the diagonal and what lies above it are read.

        Inputs that never occurred (zeros) are harmless; a Hessian of zeros counts as the unit matrix. Takes
        cols^3 / 3 multiplications in float64 and, while it runs, 4 cols^2 bytes. Raises HessianError.
        """
        cols = square_size(hessian)
        coefficients = np.empty(_native.coefficient_count(cols), np.float32)
        importance = np.empty(cols, np.float32)
        problem = _native.factorise(np.ascontiguousarray(hessian), damping, coefficients, importance)
        if problem:
            raise HessianError(f"the second moments of {cols} inputs are no Hessian: the matrix {problem}")
        return cls(coefficients, importance)

    def quantize(self, weights: NDArray[np.float32], target: AffineMatrix | GridMatrix) -> None:
        """Choose the codes and the groups' scales and biases, or grids, of `target` for finite weights [rows, cols].

        The row scales of a grid matrix are not chosen: they are as they stand in `target`. Raises HessianError if the
        feedback is that of other inputs.
        """
        require_inputs(len(self.importance), weights)
        given = np.ascontiguousarray(weights), self.coefficients, self.importance
        if isinstance(target, GridMatrix):
            parts = (as_bytes(part) for part in (target.codes, target.grids, target.scales))
            _native.grid_feedback(*given, target.format.table, target.format.group_size, *parts)
        else:
            parts = (as_bytes(part) for part in (target.codes, target.scales, target.biases))
            _native.feedback(*given, target.format.bits, target.format.group_size, *parts)


def output_error(errors: NDArray[np.float32], moments: NDArray[np.float32]) -> float:
    """tr(D M D'): by how much weight errors D [rows, cols] miss, for inputs with second moments M [cols, cols].

    The mean, over those inputs, of the squared error summed over the rows of the output. Reads of M the diagonal and
    what lies above it. Raises HessianError if M does not fit D.
    """
    require_inputs(square_size(moments), errors)
    return _native.output_error(np.ascontiguousarray(errors), np.ascontiguousarray(moments))


def square_size(moments: NDArray[np.float32]) -> int:
    """The number of inputs that float32 second moments [cols, cols] are of. Raises HessianError for other arrays."""
    if moments.dtype != np.float32 or moments.ndim != 2 or moments.shape[0] != moments.shape[1]:
        raise HessianError(f"second moments must be a square float32 matrix, not {moments.dtype} {list(moments.shape)}")
    return int(moments.shape[0])


def require_inputs(count: int, matrix: NDArray[np.float32]) -> None:
    """Raise HessianError unless second moments of `count` inputs are those of a matrix [rows, cols]."""
    if count != matrix.shape[1]:
        raise HessianError(f"second moments of {count} inputs do not fit rows of {matrix.shape[1]}")
