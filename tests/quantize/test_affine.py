"""Affine matrices against MLX: packing, dequantising, and the shapes that do not fit."""

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import quantize_reference as reference

from moepack.layout.formats import BITS, GROUP_SIZES, AffineFormat
from moepack.quantize.affine import AffineMatrix, dequantize

FORMATS = [AffineFormat(bits, group_size) for bits in BITS for group_size in GROUP_SIZES]


def quantized_by_mlx(format: AffineFormat, dtype: str) -> tuple[AffineMatrix, np.ndarray]:
    weights = np.random.default_rng(format.bits).standard_normal((7, 384)).astype(np.float32)
    parts = mx.quantize(mx.array(weights).astype(getattr(mx, dtype)), format.group_size, format.bits)
    scales, biases = (np.array(part.astype(mx.float32)).astype(np.dtype(dtype)) for part in parts[1:])
    # In float32, so that MLX itself rounds as little as it can.
    wide = mx.dequantize(parts[0], *(part.astype(mx.float32) for part in parts[1:]), format.group_size, format.bits)
    return AffineMatrix(format, np.array(parts[0]), scales, biases), np.array(wide)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_reads_what_mlx_packs(format: AffineFormat, dtype: str) -> None:
    matrix, expected = quantized_by_mlx(format, dtype)
    np.testing.assert_allclose(dequantize(matrix), expected, rtol=0, atol=1e-6)
    assert np.array_equal(dequantize(matrix), reference.dequantize(matrix))


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_dequantizes_in_float64_up_to_one_rounding(format: AffineFormat) -> None:
    matrix, _ = quantized_by_mlx(format, "bfloat16")
    codes = reference.unpack(matrix.codes, format.bits)
    scales, biases = (a.astype(np.float64).repeat(format.group_size, 1) for a in (matrix.scales, matrix.biases))
    largest = np.abs(codes * scales).max() + np.abs(biases).max()
    np.testing.assert_allclose(dequantize(matrix), codes * scales + biases, rtol=0, atol=largest * 2**-23)


def test_every_float16_is_read_exactly() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(-1, 4)
    codes = np.zeros((len(every), 4 * 32 * 2 // 32), np.uint32)
    weights = dequantize(AffineMatrix(AffineFormat(2, 32), codes, np.zeros_like(every), every))
    wanted = every.astype(np.float32).repeat(32, 1)
    assert np.array_equal(weights, wanted, equal_nan=True)


@pytest.mark.parametrize(
    ("codes", "scales", "biases"),
    [
        (np.zeros((2, 4), np.int32), np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32)),
        (np.zeros(4, np.uint32), np.zeros(1, np.float32), np.zeros(1, np.float32)),
        (np.zeros((2, 4), np.uint32), np.zeros((2, 1), np.float64), np.zeros((2, 1), np.float64)),
        (np.zeros((2, 4), np.uint32), np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float16)),
        (np.zeros((2, 4), np.uint32), np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)),
        (np.zeros((2, 5), np.uint32), np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32)),
    ],
)
def test_arrays_that_are_no_matrix_are_refused(codes: np.ndarray, scales: np.ndarray, biases: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"affine2-g64|uint32|share one"):
        AffineMatrix(AffineFormat(2, 64), codes, scales, biases)


def test_empty_has_the_shapes_of_its_format() -> None:
    matrix = AffineMatrix.empty(3, 256, AffineFormat(3, 128))
    assert matrix.shape == (3, 256)
    assert matrix.codes.shape == (3, 24)
    assert matrix.scales.shape == (3, 2)
    assert matrix.scales.dtype == ml_dtypes.bfloat16
    with pytest.raises(ValueError, match="groups of 128"):
        AffineMatrix.empty(3, 192, AffineFormat(3, 128))
