"""gptq: error feedback, kept only where the output of the layer becomes better on inputs that nothing was fitted to.

Candidates are what simpler methods chose (mse, imatrix) and error feedback by the statistics' Hessian; a format with
row scales takes over those of imatrix, which are the best for feedback too (5 % more or less lose up to 0.1 dB). The
candidate with the least held-out output error is taken, the simpler one of equals. The error of the weights plays no
part: feedback raises it by design.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from .affine import AffineMatrix, dequantize
from .calibration import InputStatistics
from .feedback import Feedback, HessianError, output_error
from .grids import GridMatrix, Matrix

_FACTORISED: WeakKeyDictionary[InputStatistics, Feedback] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Choice:
    """The matrix that was taken, the method that made it, and every candidate's held-out output error."""

    matrix: Matrix
    method: str
    errors: Mapping[str, float]


def choose(weights: NDArray[np.float32], simpler: Mapping[str, Matrix], statistics: InputStatistics) -> Choice:
    """The best of `simpler` matrices, the simplest first and one called "imatrix", and of error feedback.

    `weights` are finite float32 [rows, cols]. Raises HessianError if the Hessian or held-out moments are missing or are
    none.
    """
    held_out = required(statistics.held_out, "held-out second moments to accept or refuse its result by")
    candidates = {**simpler, "gptq": fed_back(weights, simpler["imatrix"], feedback_of(statistics))}
    errors = {name: output_error(weights - dequantize(matrix), held_out) for name, matrix in candidates.items()}
    if not np.isfinite(list(errors.values())).all() and not np.isfinite(held_out).all():
        raise HessianError("the held-out second moments have a value that is NaN or infinite")
    method = min(errors, key=errors.__getitem__)
    return Choice(candidates[method], method, errors)


def feedback_of(statistics: InputStatistics) -> Feedback:
    """The feedback of the statistics' Hessian, remembered as long as they live.

    Gate and up have the same inputs, and factorising is as much work as feeding back. Raises HessianError.
    """
    feedback = _FACTORISED.get(statistics)
    if feedback is None:
        feedback = Feedback.of(required(statistics.hessian, "the Hessian of the matrix's inputs"))
        _FACTORISED[statistics] = feedback
    return feedback


def fed_back(weights: NDArray[np.float32], start: Matrix, feedback: Feedback) -> Matrix:
    """The result of error feedback in the format, and with the row scales if it has such, of `start`."""
    rows, cols = start.shape
    if isinstance(start, AffineMatrix):
        affine = AffineMatrix.empty(rows, cols, start.format)
        feedback.quantize(weights, affine)
        return affine
    fresh = GridMatrix.empty(rows, cols, start.format)
    grids = GridMatrix(start.format, fresh.codes, fresh.grids, np.ascontiguousarray(start.scales))
    feedback.quantize(weights, grids)
    return grids


def required(moments: NDArray[np.float32] | None, what: str) -> NDArray[np.float32]:
    """The moments, if there are any. Raises HessianError, which says `what` is missing."""
    if moments is None:
        raise HessianError(f"gptq needs {what}, and the calibration has none: calibrate with Hessians, or use imatrix")
    return moments
