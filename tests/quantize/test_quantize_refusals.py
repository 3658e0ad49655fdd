"""What the quantizers refuse: weights that are not finite, and arguments that do not fit."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moepack.layout.formats import BITS, GROUP_SIZES, AffineFormat
from moepack.quantize.affine import AffineMatrix
from moepack.quantize.methods import DATA_FREE_METHODS as METHODS
from moepack.quantize.methods import NonFiniteWeightError, quantize

A2 = AffineFormat(2, 64)
BAD = st.sampled_from([np.nan, -np.nan, np.inf, -np.inf])


@settings(max_examples=100, deadline=None)
@given(
    BAD, st.sampled_from(["float32", "float16", "bfloat16"]), st.sampled_from(BITS), st.sampled_from(GROUP_SIZES),
    st.sampled_from(METHODS), st.integers(0, 40), st.integers(0, 255),
)  # fmt: skip
def test_the_row_of_a_non_finite_weight_is_found(
    bad: float, dtype: str, bits: int, group_size: int, method: str, row: int, col: int
) -> None:
    weights = np.random.default_rng(0).standard_normal((41, 256)).astype(np.dtype(dtype))
    weights[row, col] = bad
    weights[40, 255] = bad
    with pytest.raises(NonFiniteWeightError) as caught:
        quantize(weights, AffineFormat(bits, group_size), method)
    assert caught.value.row == row


@settings(max_examples=60, deadline=None)
@given(
    BAD, st.booleans(), st.sampled_from(BITS), st.sampled_from(BITS), st.sampled_from(METHODS), st.integers(0, 20),
    st.integers(0, 3),
)  # fmt: skip
def test_the_row_of_a_non_finite_scale_or_bias_is_found(
    bad: float, in_scale: bool, source_bits: int, bits: int, method: str, row: int, group: int
) -> None:
    weights = np.random.default_rng(0).standard_normal((21, 256)).astype(np.float32)
    source = quantize(weights, AffineFormat(source_bits, 64), "minmax")
    (source.scales if in_scale else source.biases)[row, group] = bad
    with pytest.raises(NonFiniteWeightError) as caught:
        quantize(source, AffineFormat(bits, 64), method)
    assert caught.value.row == row


@pytest.mark.parametrize("method", METHODS)
def test_a_range_that_overflows_is_not_finite(method: str) -> None:
    weights = np.zeros((3, 64), np.float32)
    weights[2, :2] = 3e38, -3e38
    with pytest.raises(NonFiniteWeightError, match="row 2"):
        quantize(weights, A2, method)


@pytest.mark.parametrize("method", METHODS)
def test_codes_that_are_not_there_may_overflow(method: str) -> None:
    codes = np.zeros((1, 8), np.uint32)
    scales, biases = (np.full((1, 1), value, ml_dtypes.bfloat16) for value in (1e38, 1.0))
    assert quantize(AffineMatrix(AffineFormat(4, 64), codes, scales, biases), A2, method).biases[0, 0] == 1


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="'best'; there are minmax, mse, imatrix"):
        quantize(np.zeros((1, 64), np.float32), A2, "best")


@pytest.mark.parametrize(
    "weights", [np.zeros((1, 64), np.float64), np.zeros(64, np.float32), np.zeros((1, 96), np.float32)]
)
def test_weights_that_do_not_fit(weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be a matrix|groups of 64"):
        quantize(weights, A2, "mse")


def test_out_that_does_not_fit() -> None:
    weights = np.zeros((4, 128), np.float32)
    for out in (
        AffineMatrix.empty(4, 128, AffineFormat(2, 32)),
        AffineMatrix.empty(3, 128, A2),
        AffineMatrix.empty(4, 128, A2, np.float16),
    ):
        with pytest.raises(ValueError, match="out must be"):
            quantize(weights, A2, "mse", out)
    frozen, wide = AffineMatrix.empty(4, 128, A2), AffineMatrix.empty(4, 256, A2)
    frozen.codes.flags.writeable = False
    strided = AffineMatrix(A2, wide.codes[:, ::2], wide.scales[:, ::2], wide.biases[:, ::2])
    for out in (frozen, strided):
        with pytest.raises(ValueError, match="contiguous and writeable"):
            quantize(weights, A2, "mse", out)


def test_no_rows_are_no_work() -> None:
    assert quantize(np.zeros((0, 64), np.float32), A2, "mse").shape == (0, 64)
