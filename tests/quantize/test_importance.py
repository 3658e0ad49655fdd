"""imatrix: the weighted optimum, its limits, and what is refused."""

from collections.abc import Iterator

import numpy as np
import pytest
import quantize_reference as reference
from grid_reference import dequantize as dequantize_in_numpy
from grid_reference import least_error, scales_around
from hypothesis import given, settings
from hypothesis import strategies as st

from moepack.layout.formats import FORMATS, GRID_FORMATS, AffineFormat, Format, GridFormat
from moepack.quantize.affine import AffineMatrix, dequantize
from moepack.quantize.calibration import InputStatistics
from moepack.quantize.grids import GridMatrix, Matrix
from moepack.quantize.methods import quantize

EVERY_FORMAT = pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)


def with_importance(weights: np.ndarray | AffineMatrix, format: Format, importance: np.ndarray) -> Matrix:
    return quantize(weights, format, "imatrix", statistics=InputStatistics(importance.astype(np.float32)))


def arrays(matrix: Matrix) -> list[bytes]:
    parts = (matrix.codes, matrix.scales, matrix.grids if isinstance(matrix, GridMatrix) else matrix.biases)
    return [part.tobytes() for part in parts]


def spread(rng: np.random.Generator, cols: int, deviation: float = 1.0) -> np.ndarray:
    """Importances as activations have them: lognormal."""
    return np.exp(deviation * rng.standard_normal(cols)).astype(np.float32)


def weighted_errors(weights: np.ndarray, matrix: Matrix, importance: np.ndarray) -> np.ndarray:
    """Per group of 64 inputs."""
    terms = np.square(weights.astype(float) - dequantize(matrix)) * importance.astype(float)
    return terms.reshape(-1, 64).sum(1)


def partitions(size: int) -> Iterator[tuple[int, int, int]]:
    for a in range(size):
        for b in range(a, size + 1):
            for c in range(b, size + 1):
                yield a, b, c


def weighted_optimum(group: np.ndarray, importance: np.ndarray) -> float:
    """The least weighted squared error with four equally spaced levels, over every contiguous partition."""
    order = np.argsort(group, kind="stable")
    values, counts = group[order].astype(float), importance[order].astype(float)
    a, b, c = np.array(list(partitions(len(group)))).T
    total, mean = counts.sum(), (counts * values).sum() / counts.sum()
    above, sums = (np.append(np.cumsum(x[::-1])[::-1], 0) for x in (counts, counts * (values - mean)))
    codes, squares = above[a] + above[b] + above[c], above[a] + 3 * above[b] + 5 * above[c]
    variance, covariance = squares - codes * codes / total, sums[a] + sums[b] + sums[c]
    gains = np.divide(covariance**2, variance, out=np.zeros_like(variance), where=variance > 1e-9)
    return float((counts * (values - mean) ** 2).sum() - gains.max())


@pytest.mark.parametrize("from_codes", [False, True])
def test_two_bits_reach_the_weighted_optimum(from_codes: bool) -> None:
    rng = np.random.default_rng(8)
    weights, importance = rng.standard_normal((40, 128)).astype(np.float32), spread(rng, 128)
    source: np.ndarray | AffineMatrix = weights
    if from_codes:
        source = quantize(weights, AffineFormat(4, 64), "minmax")
        weights = dequantize(source)
    reached = weighted_errors(weights, with_importance(source, AffineFormat(2, 64), importance), importance)
    counts = np.tile(importance.reshape(2, 64), (40, 1))
    best = [weighted_optimum(*pair) for pair in zip(weights.reshape(-1, 64), counts, strict=True)]
    assert reached.sum() <= (1.0005 if from_codes else 1.002) * sum(best)


@pytest.mark.parametrize("format", GRID_FORMATS, ids=lambda format: format.name)
def test_grids_nearly_reach_the_weighted_optimum(format: GridFormat) -> None:
    rng = np.random.default_rng(9)
    weights, importance = rng.standard_normal((3, 1024)).astype(np.float32), spread(rng, 1024, 0.7)
    matrix = with_importance(weights, format, importance)
    assert isinstance(matrix, GridMatrix)
    reached = (importance * np.square(weights - dequantize_in_numpy(matrix))).sum()
    best = [
        least_error(row, format, importance, scales_around(float(scale[0]), 20)[::2])
        for row, scale in zip(weights, matrix.scales, strict=True)
    ]
    assert reached <= 1.005 * sum(best)


@EVERY_FORMAT
def test_importance_lowers_the_weighted_error(format: Format) -> None:
    rng = np.random.default_rng(10)
    weights, importance = rng.standard_normal((12, 512)).astype(np.float32), spread(rng, 512)
    with_it, without = with_importance(weights, format, importance), quantize(weights, format, "mse")
    assert weighted_errors(weights, with_it, importance).sum() < weighted_errors(weights, without, importance).sum()


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(FORMATS), st.booleans(), st.sampled_from([1.0, 0.0, 3e-30, 2.0**100]), st.integers(0, 2**32))
def test_equal_importances_are_none(format: Format, from_codes: bool, importance: float, seed: int) -> None:
    weights: np.ndarray | AffineMatrix = np.random.default_rng(seed).standard_t(4, (5, 256)).astype(np.float32)
    if from_codes:
        weights = quantize(weights, AffineFormat(4, 64), "minmax")
    same = with_importance(weights, format, np.full(256, importance))
    assert arrays(same) == arrays(quantize(weights, format, "mse"))


@EVERY_FORMAT
def test_only_ratios_of_importances_matter(format: Format) -> None:
    rng = np.random.default_rng(11)
    weights, importance = rng.standard_normal((4, 256)).astype(np.float32), spread(rng, 256)
    expected = arrays(with_importance(weights, format, importance))
    assert arrays(with_importance(weights, format, importance * 2.0**-60)) == expected
    assert arrays(with_importance(weights, format, importance * 2.0**60)) == expected


def test_a_group_without_importance_counts_its_weights_equally() -> None:
    rng, format = np.random.default_rng(12), AffineFormat(2, 64)
    weights, importance = rng.standard_normal((3, 128)).astype(np.float32), spread(rng, 128)
    importance[64:] = 0
    matrix, plain = with_importance(weights, format, importance), quantize(weights, format, "mse")
    assert matrix.scales[:, 1].tobytes() == plain.scales[:, 1].tobytes()
    assert matrix.codes[:, 4:].tobytes() == plain.codes[:, 4:].tobytes()
    assert matrix.codes[:, :4].tobytes() != plain.codes[:, :4].tobytes()


@EVERY_FORMAT
def test_few_important_weights_are_met_nearly_exactly(format: Format) -> None:
    rng = np.random.default_rng(13)
    weights, importance = rng.standard_normal((6, 256)).astype(np.float32), np.full(256, 1e-9)
    importance[::128] = 1
    read = dequantize(with_importance(weights, format, importance))
    plain = dequantize(quantize(weights, format, "mse"))
    assert np.abs(read - weights)[:, ::128].mean() < 0.5 * np.abs(plain - weights)[:, ::128].mean()


def test_mse_takes_no_notice_of_statistics() -> None:
    rng, format = np.random.default_rng(14), GridFormat("book", 2, 8)
    weights, statistics = rng.standard_normal((2, 64)).astype(np.float32), InputStatistics(spread(rng, 64))
    assert arrays(quantize(weights, format, "mse", statistics=statistics)) == arrays(quantize(weights, format, "mse"))


@pytest.mark.parametrize("format", [AffineFormat(2, 64), GridFormat("book", 2, 8)], ids=lambda format: format.name)
def test_importances_that_do_not_fit(format: Format) -> None:
    weights = np.ones((2, 128), np.float32)
    with pytest.raises(ValueError, match="imatrix needs statistics"):
        quantize(weights, format, "imatrix")
    with pytest.raises(ValueError, match=r"importances \[64\] are not one for each of 128 inputs"):
        with_importance(weights, format, np.ones(64))
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="negative, NaN or infinite"):
            with_importance(weights, format, np.where(np.arange(128) == 77, bad, 1.0))


def test_the_reference_of_this_file_agrees_with_the_unweighted_one() -> None:
    groups = np.random.default_rng(15).standard_normal((3, 32)).astype(np.float32)
    wanted = reference.exact_optimum(groups)
    found = [weighted_optimum(group, np.ones(32)) for group in groups]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
