"""Methods: the ways of choosing codes, scales and biases for a format.

`minmax` is the reference system's rule, generalised from 2 to any number of bits. `mse`, the default of `moe-pack`,
minimises the squared error. Both are native, single-threaded, release the GIL and give the same bytes on every
machine and instruction set: elementwise IEEE operations (no fused multiply-add, no flush to zero), min, max, integer
work, and sums in a fixed order.

minmax, per group of float32 weights w (an affine source is dequantised first: code * scale, rounded, + bias)
    bias = min w, scale = (max w - min w) / (2^bits - 1), code = clamp(rint((w - bias) / scale), 0, 2^bits - 1) with
    ties to even, all in float32. scale == 0 (a constant group) gives codes 0. Then scale and bias are stored as
    bfloat16 by dropping the low 16 bits of the float32. min takes -0.0 as less than +0.0.

mse, per group
    The least-squares-optimal scale and bias, rounded to nearest bfloat16 (scale first, then the best bias for that
    scale); code = clamp(rint((w - bias) / scale)) with the stored values. Where the result of minmax has the smaller
    squared error after storing, that result is taken: mse is never worse. Stored scales are never negative.
    2 bits from affine codes of at most 4 bits: a group's histogram of codes is searched completely, over every split
    into levels that equally spaced thresholds can make, so the optimum is global. Everything else: descent from
    several starts, alternating nearest codes and least squares.

mse, for formats of grids (minmax has no meaning for them and is refused)
    Per row, the bfloat16 scale, and per group, the grid, of least squared error; codes pick the nearest level. Scales
    are searched from a coarse ladder down to neighbouring bfloat16 numbers, and every scale is judged with the best
    grid of every group. A row for which nothing is better than zeros has scale, grids and codes 0.

imatrix
    The same searches as mse, for the least sum of importance * (w - w')^2, where the importance of an input comes with
    the statistics. Within a group without any importance, all weights count the same.

gptq
    Of the results of mse and imatrix and of error feedback by the statistics' Hessian (see `feedback`) the one with the
    least held-out output error (see `gptq`).
"""

from typing import TypeVar, overload

import ml_dtypes
import numpy as np

from ..layout.formats import AffineFormat, Format, GridFormat
from . import _native
from .affine import FLOAT_NAMES, AffineMatrix, as_bytes, dequantize, native_parts, require_whole_groups
from .calibration import InputStatistics
from .gptq import Choice, choose
from .grids import GridMatrix, Matrix, native_grids
from .moments import Floats

# A manifest's `recipe.arithmetic`: raised by every change, here or in how weights are read, that changes any byte.
ARITHMETIC = 1
DATA_FREE_METHODS = ("minmax", "mse")
CALIBRATED_METHODS = ("imatrix", "gptq")  # those that need statistics of a matrix's inputs
METHODS = (*DATA_FREE_METHODS, *CALIBRATED_METHODS)
PLAIN_METHODS = ("minmax",)  # for plain affine formats only
_SEARCHES = {"minmax": "minmax", "mse": "mse", "imatrix": "mse"}  # the native search of a method
M = TypeVar("M", AffineMatrix, GridMatrix)


class NonFiniteWeightError(ValueError):
    """A weight is NaN or infinite, or a group's weights lie further apart than float32 can say; `row` is the first."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} has a weight that is NaN or infinite, or a group whose range overflows float32")
        self.row = row


def instruction_set() -> str:
    """The one that runs: this machine's best, or what MOEPACK_ISA names; ValueError if the machine cannot run that."""
    try:
        return _native.instruction_set()
    except RuntimeError as error:
        raise ValueError(f"{error}; there are {', '.join(_native.INSTRUCTION_SETS)}") from None


@overload
def quantize(
    weights: np.ndarray | AffineMatrix,
    format: AffineFormat,
    method: str,
    out: Matrix | None = None,
    statistics: InputStatistics | None = None,
) -> AffineMatrix: ...
@overload
def quantize(
    weights: np.ndarray | AffineMatrix,
    format: GridFormat,
    method: str,
    out: Matrix | None = None,
    statistics: InputStatistics | None = None,
) -> GridMatrix: ...
def quantize(
    weights: np.ndarray | AffineMatrix,
    format: Format,
    method: str,
    out: Matrix | None = None,
    statistics: InputStatistics | None = None,
) -> Matrix:
    """Choose codes, and what gives them their values, of `format` for a matrix [rows, cols] by one of `METHODS`.

    `weights` are float32, float16 or bfloat16, or themselves quantized. The result's scales and biases are bfloat16;
    it is written into the arrays of `out` (contiguous; views into a larger buffer are fine) when given. `statistics`
    are what imatrix and gptq need; the methods without data take no notice of them.
    Raises NonFiniteWeightError (`out` is then partly written), and ValueError for arguments that do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"no quantization method is called {method!r}; there are {', '.join(METHODS)}")
    require_suited(method, format)
    shape = _shape(weights)
    require_whole_groups(shape[1], format)
    if method == "gptq":
        return _copied(choose_by_feedback(weights, format, statistics).matrix, out)
    importance = _importance(statistics, method, shape[1]) if method in CALIBRATED_METHODS else None
    if isinstance(format, GridFormat):
        return _quantize_to_grids(weights, format, method, out, importance)
    result = AffineMatrix.empty(*shape, format) if out is None else _checked_out(out, AffineMatrix, shape, format)
    target = (_SEARCHES[method], shape[1], *native_parts(result)[1:], importance)
    if isinstance(weights, AffineMatrix):
        arguments = (*native_parts(weights), *target)
        _require_finite(_native.quantize_affine(*arguments))
    else:
        _require_finite(_native.quantize_floats(weights.dtype.name, as_bytes(weights), *target))
    return result


def quantize_into(
    out: Matrix, weights: np.ndarray | AffineMatrix, method: str, statistics: InputStatistics | None = None
) -> str:
    """`quantize` to the format and into the arrays of `out`; the method whose result was taken.

    That is `method` itself, but for gptq, which takes a simpler one's where that is better.
    """
    if method != "gptq":
        quantize(weights, out.format, method, out, statistics)
        return method
    choice = choose_by_feedback(weights, out.format, statistics)
    _copied(choice.matrix, out)
    return choice.method


def suits(method: str, format: Format) -> bool:
    """Whether a method can choose codes for a format."""
    return method not in PLAIN_METHODS or isinstance(format, AffineFormat)


def require_suited(method: str, format: Format) -> None:
    """Raise ValueError unless the method suits the format."""
    if not suits(method, format):
        raise ValueError(
            f"{method} chooses codes for plain affine formats only, not for {format.name};"
            " name one such as affine2-g64, or use mse"
        )


def choose_by_feedback(
    weights: np.ndarray | AffineMatrix, format: Format, statistics: InputStatistics | None
) -> Choice:
    """What `gptq` takes for a matrix [rows, cols], the method that made it, and what it was compared with.

    Matrices with the same inputs, as gate and up have, are best given the same object as statistics: its Hessian is
    factorised once. Raises like `quantize`.
    """
    if statistics is None:
        raise ValueError("gptq needs statistics of the matrix's inputs; mse does without")
    simpler: dict[str, Matrix] = {}
    for method in ("mse", "imatrix"):
        simpler[method] = quantize(weights, format, method, statistics=statistics)
    floats = dequantize(weights) if isinstance(weights, AffineMatrix) else weights.astype(np.float32, copy=False)
    return choose(floats, simpler, statistics)


def _copied(matrix: Matrix, out: Matrix | None) -> Matrix:
    """The matrix, in the arrays of `out` if there is one."""
    if out is None:
        return matrix
    if isinstance(matrix, GridMatrix):
        _checked_out(out, GridMatrix, matrix.shape, matrix.format).grids[...] = matrix.grids
    else:
        _checked_out(out, AffineMatrix, matrix.shape, matrix.format).biases[...] = matrix.biases
    out.codes[...], out.scales[...] = matrix.codes, matrix.scales
    return out


def _quantize_to_grids(
    weights: np.ndarray | AffineMatrix, format: GridFormat, method: str, out: Matrix | None, importance: Floats | None
) -> GridMatrix:
    shape = _shape(weights)
    result = GridMatrix.empty(*shape, format) if out is None else _checked_out(out, GridMatrix, shape, format)
    target = (*native_grids(result), importance)
    if isinstance(weights, AffineMatrix):
        arguments = (*native_parts(weights), *target)
        _require_finite(_native.quantize_affine_to_grids(*arguments))
    else:
        _require_finite(_native.quantize_floats_to_grids(weights.dtype.name, as_bytes(weights), *target))
    return result


def _importance(statistics: InputStatistics | None, method: str, cols: int) -> Floats:
    if statistics is None:
        raise ValueError(f"{method} needs statistics of the matrix's inputs; mse does without")
    importance = np.ascontiguousarray(statistics.importance, np.float32)
    if importance.shape != (cols,):
        raise ValueError(f"importances {list(importance.shape)} are not one for each of {cols} inputs")
    if not (np.isfinite(importance) & (importance >= 0)).all():
        raise ValueError("an importance is negative, NaN or infinite")
    return importance


def _require_finite(bad_row: int) -> None:
    if bad_row >= 0:
        raise NonFiniteWeightError(bad_row)


def _shape(weights: np.ndarray | AffineMatrix) -> tuple[int, int]:
    if isinstance(weights, AffineMatrix):
        return weights.shape
    if weights.dtype.name not in FLOAT_NAMES or weights.ndim != 2:
        raise ValueError(f"weights must be a matrix of {FLOAT_NAMES}, not {weights.dtype} {list(weights.shape)}")
    return weights.shape[0], weights.shape[1]


def _checked_out(out: Matrix, kind: type[M], shape: tuple[int, int], format: Format) -> M:
    fits = out.format == format and out.shape == shape and out.scales.dtype == ml_dtypes.bfloat16
    if not isinstance(out, kind) or not fits:
        raise ValueError(f"out must be a {format.name} matrix {list(shape)} with bfloat16 scales")
    for array in (out.codes, out.scales, out.grids if isinstance(out, GridMatrix) else out.biases):
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError("the arrays of out must be contiguous and writeable")
    return out
