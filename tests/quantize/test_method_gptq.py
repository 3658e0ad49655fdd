"""gptq takes error feedback where held-out outputs become better, and a simpler method's result where they do not."""

from weakref import ref

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moepack.layout.formats import AffineFormat, Format, GridFormat, parse
from moepack.quantize.affine import AffineMatrix, dequantize
from moepack.quantize.calibration import InputStatistics
from moepack.quantize.feedback import Feedback, HessianError
from moepack.quantize.gptq import choose, fed_back, feedback_of
from moepack.quantize.grids import GridMatrix, Matrix
from moepack.quantize.methods import NonFiniteWeightError, choose_by_feedback, quantize

FORMATS = [parse(name) for name in ("affine2-g64", "affine3-g64", "affine2-g16s", "book2-g8", "book2-g16")]
WEIGHTS = (np.random.default_rng(0).standard_normal((96, 128)) * 0.02).astype(np.float32)


def simpler(weights: np.ndarray, format: Format, importance: np.ndarray) -> dict[str, Matrix]:
    """What mse and imatrix choose, the simpler one first."""
    statistics = InputStatistics(np.ascontiguousarray(importance))
    found: dict[str, Matrix] = {}
    for method in ("mse", "imatrix"):
        found[method] = quantize(weights, format, method, statistics=statistics)
    return found


def raw(matrix: Matrix) -> bytes:
    last = matrix.grids if isinstance(matrix, GridMatrix) else matrix.biases
    return b"".join(np.ascontiguousarray(part).tobytes() for part in (matrix.codes, last, matrix.scales))


def correlated(by: float, importance: np.ndarray) -> np.ndarray:
    """Second moments of inputs that all have the same correlation with one another."""
    cols = len(importance)
    roots = np.sqrt(importance)
    return ((by + (1 - by) * np.eye(cols)) * roots * roots[:, None]).astype(np.float32)


def steep(seed: int) -> np.ndarray:
    """Second moments of 2000 samples of inputs whose i-th strongest direction has the power 1/i."""
    directions = np.linalg.qr(np.random.default_rng(0).standard_normal((128, 128)))[0]
    strengths = np.arange(1, 129)[:, None] ** -0.5 * directions
    samples = np.random.default_rng(seed).standard_normal((2000, 128)) @ strengths
    return (samples.T @ samples / 2000).astype(np.float32)


def trace(weights: np.ndarray, matrix: Matrix, moments: np.ndarray) -> float:
    errors = weights.astype(np.float64) - dequantize(matrix)
    return float(np.einsum("ri,ij,rj->", errors, moments.astype(np.float64), errors))


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_feedback_is_taken_where_inputs_have_a_steep_spectrum(format: Format) -> None:
    fitted, held_out = steep(1), steep(2)
    statistics = InputStatistics(np.diag(fitted).copy(), fitted, held_out)
    choice = choose(WEIGHTS, simpler(WEIGHTS, format, np.diag(fitted)), statistics)
    assert choice.method == "gptq"
    assert choice.errors["gptq"] < 0.6 * choice.errors["imatrix"]
    assert choice.errors["gptq"] == pytest.approx(trace(WEIGHTS, choice.matrix, held_out), rel=1e-4)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_feedback_is_refused_where_held_out_inputs_are_not(format: Format) -> None:
    importance = np.random.default_rng(1).lognormal(0, 0.5, 128).astype(np.float32)
    statistics = InputStatistics(importance, correlated(0.8, importance), correlated(0, importance))
    candidates = simpler(WEIGHTS, format, importance)
    choice = choose(WEIGHTS, candidates, statistics)
    assert choice.method == "imatrix"
    assert choice.matrix is candidates["imatrix"]


def test_importance_is_refused_where_held_out_inputs_contradict_it() -> None:
    importance = np.where(np.arange(128) % 2, 100, 0.01).astype(np.float32)
    statistics = InputStatistics(importance, correlated(0, importance), correlated(0, importance[::-1]))
    assert choose(WEIGHTS, simpler(WEIGHTS, parse("book2-g8"), importance), statistics).method == "mse"


def test_of_equals_the_simplest_is_taken() -> None:
    weights, one = np.zeros((5, 128), np.float32), np.ones(128, np.float32)
    statistics = InputStatistics(one, np.eye(128, dtype=np.float32), np.eye(128, dtype=np.float32))
    assert choose(weights, simpler(weights, parse("book2-g8"), one), statistics).method == "mse"


def test_the_error_of_weights_plays_no_part() -> None:
    importance = np.ones(128, np.float32)
    statistics = InputStatistics(importance, correlated(0.8, importance), correlated(0.8, importance))
    candidates = simpler(WEIGHTS, parse("book2-g8"), importance)
    chosen = choose(WEIGHTS, candidates, statistics).matrix
    assert trace(WEIGHTS, chosen, np.eye(128)) > trace(WEIGHTS, candidates["mse"], np.eye(128))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(FORMATS), st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from([0.0, 0.3, 0.9]), st.integers(0, 99))
def test_no_candidate_is_better_than_the_choice(format: Format, fitted: float, judged: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = (rng.standard_t(4, (9, 128)) * 0.1).astype(np.float32)
    importance, later = rng.lognormal(0, 1, (2, 128)).astype(np.float32)
    statistics = InputStatistics(importance, correlated(fitted, importance), correlated(judged, later))
    candidates = simpler(weights, format, importance)
    choice = choose(weights, candidates, statistics)
    assert statistics.hessian is not None
    candidates["gptq"] = fed_back(weights, candidates["imatrix"], Feedback.of(statistics.hessian))
    errors = {name: trace(weights, matrix, correlated(judged, later)) for name, matrix in candidates.items()}
    assert trace(weights, choice.matrix, correlated(judged, later)) <= min(errors.values()) * (1 + 1e-4)


def test_a_hessian_is_factorised_once_as_long_as_its_statistics_live(monkeypatch: pytest.MonkeyPatch) -> None:
    factorised: list[int] = []
    original = Feedback.of
    monkeypatch.setattr(Feedback, "of", lambda hessian: factorised.append(len(hessian)) or original(hessian))
    statistics = steep_statistics()
    first = feedback_of(statistics)
    assert feedback_of(statistics) is first
    assert factorised == [128]
    assert feedback_of(steep_statistics()) is not first
    gone = ref(first)
    del statistics, first
    assert gone() is None


def test_row_scales_are_those_of_imatrix_and_stay_untouched() -> None:
    candidates = simpler(WEIGHTS, GridFormat("book", 2, 8), np.ones(128, np.float32))
    before = candidates["imatrix"]
    assert isinstance(before, GridMatrix)
    codes = before.codes.copy()
    after = fed_back(WEIGHTS, before, Feedback.of(correlated(0.8, np.ones(128, np.float32))))
    assert isinstance(after, GridMatrix)
    assert np.array_equal(after.scales, before.scales)
    assert np.array_equal(before.codes, codes)
    assert not np.array_equal(after.codes, codes)


@pytest.mark.parametrize("missing", ["hessian", "held_out"])
def test_moments_that_are_missing(missing: str) -> None:
    one, eye = np.ones(128, np.float32), np.eye(128, dtype=np.float32)
    statistics = InputStatistics(one, None if missing == "hessian" else eye, None if missing == "held_out" else eye)
    with pytest.raises(HessianError, match=r"gptq needs .* calibrate with Hessians, or use imatrix"):
        choose(WEIGHTS, simpler(WEIGHTS, AffineFormat(2, 64), one), statistics)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_held_out_moments_that_are_not_finite(bad: float) -> None:
    one, eye = np.ones(128, np.float32), np.eye(128, dtype=np.float32)
    held_out = eye.copy()
    held_out[3, 77] = bad
    with pytest.raises(HessianError, match="held-out second moments have a value that is NaN or infinite"):
        choose(WEIGHTS, simpler(WEIGHTS, AffineFormat(2, 64), one), InputStatistics(one, eye, held_out))


def test_moments_of_other_inputs() -> None:
    one, eye = np.ones(128, np.float32), np.eye(128, dtype=np.float32)
    small = np.eye(64, dtype=np.float32)
    candidates = simpler(WEIGHTS, AffineFormat(2, 64), one)
    for statistics in (InputStatistics(one, small, eye), InputStatistics(one, eye, small)):
        with pytest.raises(HessianError, match="64 inputs do not fit rows of 128"):
            choose(WEIGHTS, candidates, statistics)


def steep_statistics() -> InputStatistics:
    fitted = steep(1)
    return InputStatistics(np.diag(fitted).copy(), fitted, steep(2))


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize("source", ["float32", "bfloat16", "4 bits"])
def test_the_method_is_the_choice_from_any_source(format: Format, source: str) -> None:
    four_bit, statistics = quantize(WEIGHTS, AffineFormat(4, 64), "minmax"), steep_statistics()
    weights = {"float32": WEIGHTS, "bfloat16": WEIGHTS.astype(ml_dtypes.bfloat16), "4 bits": four_bit}[source]
    choice = choose_by_feedback(weights, format, statistics)
    out = (GridMatrix if isinstance(format, GridFormat) else AffineMatrix).empty(*WEIGHTS.shape, format)
    assert quantize(weights, format, "gptq", out, statistics) is out
    assert raw(out) == raw(choice.matrix) == raw(quantize(weights, format, "gptq", statistics=statistics))
    floats = dequantize(four_bit) if source == "4 bits" else weights.astype(np.float32)
    candidates = {method: quantize(weights, format, method, statistics=statistics) for method in ("mse", "imatrix")}
    assert raw(choose(floats, candidates, statistics).matrix) == raw(choice.matrix)


def test_the_method_needs_statistics() -> None:
    with pytest.raises(ValueError, match="gptq needs statistics of the matrix's inputs"):
        quantize(WEIGHTS, AffineFormat(2, 64), "gptq")


def test_an_out_of_another_format() -> None:
    out = AffineMatrix.empty(96, 128, AffineFormat(2, 32))
    with pytest.raises(ValueError, match="out must be a affine2-g64 matrix"):
        quantize(WEIGHTS, AffineFormat(2, 64), "gptq", out, steep_statistics())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(bad: float) -> None:
    weights = WEIGHTS.copy()
    weights[37, 5] = bad
    for format in FORMATS:
        with pytest.raises(NonFiniteWeightError) as caught:
            quantize(weights, format, "gptq", statistics=steep_statistics())
        assert caught.value.row == 37
