"""How good grids and their scales are: against exhaustive search, against plain formats, and on odd rows."""

import math

import ml_dtypes
import numpy as np
import pytest
from grid_reference import dequantize as dequantize_in_numpy
from grid_reference import least_error, scales_around
from hypothesis import given, settings
from hypothesis import strategies as st

from moepack.layout.formats import GRID_FORMATS, AffineFormat, Format, GridFormat, parse
from moepack.quantize.affine import AffineMatrix, dequantize
from moepack.quantize.error import relative_squared_error
from moepack.quantize.methods import NonFiniteWeightError, quantize

FORMATS = pytest.mark.parametrize("format", GRID_FORMATS, ids=lambda format: format.name)
DECIBELS = {
    "affine2-g16s": 11.6, "affine2-g32s": 10.4, "affine3-g16s": 18.0, "affine3-g32s": 16.4,
    "book2-g8": 12.6, "book2-g16": 11.2, "book3-g8": 18.6, "book3-g16": 17.2,
}  # fmt: skip
SHAPES = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape),
    "t5": lambda rng, shape: rng.standard_t(5, shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
}


def decibels_of_mse(weights: np.ndarray, format: Format) -> float:
    """Signal to quantization noise of `mse`, in dB."""
    return -10 * math.log10(relative_squared_error(weights, quantize(weights, format, "mse")))


@pytest.mark.parametrize("name", DECIBELS)
def test_signal_to_noise_on_gaussian_rows(name: str) -> None:
    weights = np.random.default_rng(0).standard_normal((32, 4096)).astype(np.float32)
    assert decibels_of_mse(weights, parse(name)) >= DECIBELS[name]


def test_more_bytes_are_better() -> None:
    weights = np.random.default_rng(1).standard_t(5, (32, 1024)).astype(np.float32)
    order = ["affine2-g64", "affine2-g32s", "book2-g16", "affine2-g16s", "book2-g8", "affine3-g64", "affine3-g32s"]
    decibels = [decibels_of_mse(weights, parse(name)) for name in order]
    assert decibels[0] < decibels[1] < decibels[2] < decibels[4]
    assert decibels[1] < decibels[3] < decibels[4] < decibels[5] < decibels[6]


@pytest.mark.parametrize("shape", SHAPES)
@FORMATS
def test_nearly_the_least_error_there_is(format: GridFormat, shape: str) -> None:
    weights = SHAPES[shape](np.random.default_rng(6), (2, 1024)).astype(np.float32)
    matrix = quantize(weights, format, "mse")
    reached = np.square(weights - dequantize_in_numpy(matrix)).sum(1)
    ones = np.ones(1024)
    best = [
        least_error(row, format, ones, scales_around(float(scale[0]), 24)[::3])
        for row, scale in zip(weights, matrix.scales, strict=True)
    ]
    assert reached.sum() <= 1.01 * sum(best)


@FORMATS
def test_4_bit_sources_are_taken_as_what_they_read_as(format: GridFormat) -> None:
    weights = np.random.default_rng(5).standard_t(4, (5, 256)).astype(np.float32)
    source = quantize(weights, AffineFormat(4, 64), "minmax")
    from_codes, from_floats = quantize(source, format, "mse"), quantize(dequantize(source), format, "mse")
    for part in ("codes", "grids", "scales"):
        assert getattr(from_codes, part).tobytes() == getattr(from_floats, part).tobytes()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(GRID_FORMATS), st.sampled_from(["normal", "spike", "offset", "sparse", "constant"]),
    st.integers(-140, 126), st.integers(0, 2**32),
)  # fmt: skip
def test_no_magnitude_overflows_or_is_worse_than_zero(format: GridFormat, kind: str, exponent: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    normal = rng.uniform(-1, 1, (3, 96))
    spike = np.where(np.arange(96) == seed % 96, 1.0, 1e-5 * normal)
    unit = {
        "normal": normal, "spike": spike, "offset": 1 + 1e-3 * normal, "sparse": normal * (normal > 0.8),
        "constant": np.full((3, 96), -0.7),
    }[kind]  # fmt: skip
    weights = (unit * 1.99 * 2.0**exponent).astype(np.float32)
    matrix = quantize(weights, format, "mse")
    read = dequantize(matrix).astype(float)
    assert np.isfinite(read).all()
    assert (np.square(weights - read).sum(1) <= np.square(weights.astype(float)).sum(1)).all()


@FORMATS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_row_of_a_non_finite_weight_is_found(format: GridFormat, bad: float) -> None:
    weights = np.ones((9, 64), ml_dtypes.bfloat16)
    weights[5, 63] = weights[7, 0] = bad
    with pytest.raises(NonFiniteWeightError) as caught:
        quantize(weights, format, "mse")
    assert caught.value.row == 5


def test_minmax_is_refused_for_grids() -> None:
    with pytest.raises(ValueError, match=r"plain affine formats only, not for book2-g8; .* use mse"):
        quantize(np.ones((1, 64), np.float32), GridFormat("book", 2, 8), "minmax")


def test_out_of_another_kind_is_refused() -> None:
    out = AffineMatrix.empty(1, 64, AffineFormat(2, 64))
    with pytest.raises(ValueError, match="out must be a book2-g8 matrix"):
        quantize(np.ones((1, 64), np.float32), GridFormat("book", 2, 8), "mse", out)
