"""How good the codes are: mse against the exact optimum and against minmax, and the error measure."""

import math

import numpy as np
import pytest
import quantize_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from moepack.layout.formats import BITS, GROUP_SIZES, AffineFormat
from moepack.quantize.affine import AffineMatrix, dequantize
from moepack.quantize.error import relative_squared_error
from moepack.quantize.methods import quantize

SHAPES = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape),
    "t5": lambda rng, shape: rng.standard_t(5, shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
}


def group_errors(weights: np.ndarray, quantized: AffineMatrix) -> np.ndarray:
    """Squared error per group, with what is stored, in float64."""
    difference = weights.astype(np.float64) - dequantize(quantized)
    return np.square(difference).reshape(-1, quantized.format.group_size).sum(1)


@pytest.mark.parametrize(("group_size", "groups"), [(32, 256), (64, 128), (128, 8)])
@pytest.mark.parametrize("shape", SHAPES)
def test_mse_from_floats_is_within_a_fifth_of_a_percent_of_the_optimum(
    shape: str, group_size: int, groups: int
) -> None:
    rng = np.random.default_rng(17)
    weights = SHAPES[shape](rng, (groups, group_size)).astype(np.float32)
    reached = group_errors(weights, quantize(weights, AffineFormat(2, group_size), "mse")).sum()
    assert reached <= 1.002 * reference.exact_optimum(weights).sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_from_4_bits_is_the_optimum_but_for_rounding_the_parameters(shape: str) -> None:
    rng = np.random.default_rng(18)
    source = quantize(SHAPES[shape](rng, (200, 64)).astype(np.float32), AffineFormat(4, 64), "minmax")
    weights = dequantize(source)
    reached = group_errors(weights, quantize(source, AffineFormat(2, 64), "mse"))
    assert reached.sum() <= 1.0002 * reference.exact_optimum(weights).sum()


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(BITS), st.sampled_from(GROUP_SIZES), st.sampled_from([0, 2, 3, 4, 6, 8]), st.integers(-12, 12),
    st.sampled_from([0.0, 1.0, 300.0]), st.integers(0, 2**32),
)  # fmt: skip
def test_mse_is_never_worse_than_minmax(
    bits: int, group_size: int, source_bits: int, exponent: int, offset: float, seed: int
) -> None:
    rng, format = np.random.default_rng(seed), AffineFormat(bits, group_size)
    weights: np.ndarray | AffineMatrix = ((rng.standard_t(3, (9, 128)) + offset) * 2.0**exponent).astype(np.float32)
    if source_bits:
        weights = quantize(weights, AffineFormat(source_bits, 64), "minmax")
    wanted = dequantize(weights) if isinstance(weights, AffineMatrix) else weights
    errors = [group_errors(wanted, quantize(weights, format, method)) for method in ("mse", "minmax")]
    assert (errors[0] <= errors[1] * (1 + 1e-12)).all()


def exact_codes(whole: np.ndarray) -> AffineMatrix:
    """Whole numbers from -6 to 6 as 4-bit codes with scale 1."""
    scales = np.ones((len(whole), 1), np.float32)
    return AffineMatrix(AffineFormat(4, 128), reference.pack((whole + 6).astype(np.uint8), 4), scales, -6 * scales)


@pytest.mark.parametrize("values", [(-3.0, 5.0), (1.0, 2.0, 3.0), (-6.0, -2.0, 2.0, 6.0), (0.0, 1.0, 3.0)])
@pytest.mark.parametrize("from_codes", [False, True])
def test_few_evenly_spaced_values_are_kept(values: tuple[float, ...], from_codes: bool) -> None:
    picks = np.random.default_rng(2).choice(values, (11, 128)).astype(np.float32)
    picks[:, : len(values)] = values
    source = exact_codes(picks) if from_codes else picks
    kept = dequantize(quantize(source, AffineFormat(2, 128), "mse"))
    np.testing.assert_allclose(kept, picks, rtol=0, atol=6 * 2**-7)


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_constant_groups_have_scale_and_codes_0(method: str) -> None:
    constant = quantize(np.full((3, 64), 1.5, np.float32), AffineFormat(2, 64), method)
    assert not constant.codes.any()
    assert not constant.scales.any()
    assert (constant.biases == 1.5).all()


def test_relative_squared_error() -> None:
    weights = np.array([[3.0] * 16 + [-4.0] * 16], np.float32)
    exact = quantize(weights, AffineFormat(2, 32), "mse")
    assert relative_squared_error(weights, exact) < 1e-4
    zero = quantize(np.zeros_like(weights), AffineFormat(2, 32), "mse")
    assert relative_squared_error(weights, zero) == 1
    assert relative_squared_error(zero, zero) == 0
    assert relative_squared_error(zero, exact) == math.inf
