"""Matrices of grids: reading against FORMAT.md's formulas in numpy, exact round trips, and shapes that do not fit."""

import ml_dtypes
import numpy as np
import pytest
from grid_reference import dequantize as dequantize_in_numpy
from grid_reference import levels, matrix_of
from hypothesis import given, settings
from hypothesis import strategies as st

from moepack.layout.formats import GRID_FORMATS, GridFormat
from moepack.quantize.affine import dequantize
from moepack.quantize.error import relative_squared_error
from moepack.quantize.grids import GridMatrix
from moepack.quantize.methods import quantize

FORMATS = pytest.mark.parametrize("format", GRID_FORMATS, ids=lambda format: format.name)


def some_matrix(format: GridFormat, rows: int, cols: int, seed: int) -> GridMatrix:
    """Codes and grids of every kind, evenly; but each group has its lowest and its highest level."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**format.bits, (rows, cols))
    codes[:, :: format.group_size], codes[:, 1 :: format.group_size] = 0, 2**format.bits - 1
    grids = rng.integers(0, 2**format.grid_bits, (rows, cols // format.group_size))
    return matrix_of(format, codes, grids, np.exp(rng.normal(size=rows)))


@FORMATS
def test_the_table_is_what_the_formulas_say(format: GridFormat) -> None:
    assert np.array_equal(format.table, levels(format))


@FORMATS
def test_reads_every_code_and_grid_exactly(format: GridFormat) -> None:
    matrix = some_matrix(format, 7, 1024, 1)
    weights = dequantize(matrix)
    assert weights.dtype == np.float32
    assert np.array_equal(weights.astype(float), dequantize_in_numpy(matrix))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(GRID_FORMATS), st.integers(16, 64), st.integers(-90, 90), st.integers(0, 2**32))
def test_weights_that_lie_on_grids_are_kept_exactly(format: GridFormat, width: int, exponent: int, seed: int) -> None:
    matrix = some_matrix(format, 3, 32 * width, seed)
    weights = dequantize(matrix) * np.float32(2.0**exponent)
    assert np.array_equal(dequantize(quantize(weights, format, "mse")), weights)


@FORMATS
def test_zero_rows_are_all_zero_bytes(format: GridFormat) -> None:
    weights = np.random.default_rng(4).standard_normal((3, 64)).astype(np.float32)
    weights[1] = -0.0
    matrix = quantize(weights, format, "mse")
    assert not matrix.codes[1].any()
    assert not matrix.grids[1].any()
    assert matrix.scales[1].view(np.uint16) == 0
    assert matrix.codes[[0, 2]].any(1).all()


@FORMATS
def test_zero_groups_read_as_zero_where_a_grid_is_zero(format: GridFormat) -> None:
    weights = np.random.default_rng(4).standard_normal((1, 128)).astype(np.float32)
    weights[0, 32:64] = 0
    kept = dequantize(quantize(weights, format, "mse"))
    assert relative_squared_error(weights, quantize(weights, format, "mse")) < 0.1
    assert (kept[0, 32:64] == 0).all() == (format.family == "affine")


@FORMATS
def test_arrays_that_do_not_fit(format: GridFormat) -> None:
    good = GridMatrix.empty(3, 96, format)
    for codes, grids, scales in (
        (good.codes.view(np.int32), good.grids, good.scales),
        (good.codes, good.grids[:, :-1], good.scales),
        (good.codes, good.grids, good.scales[:2]),
        (good.codes, good.grids, good.scales.astype(np.float32)),
        (good.codes[:, : format.bits - 1], good.grids, good.scales),
        (good.codes.reshape(-1), good.grids, good.scales),
    ):
        with pytest.raises(ValueError, match="codes"):
            GridMatrix(format, codes, grids, scales)
    with pytest.raises(ValueError, match="rows of 48 inputs"):
        GridMatrix.empty(3, 48, format)


def test_the_largest_and_smallest_scales_read_exactly() -> None:
    format = GridFormat("book", 2, 8)
    scales = np.array([2.0**-126, 2.0**-133, 2.0**120]).astype(ml_dtypes.bfloat16)
    codes, grids = np.tile(np.arange(4), (3, 8)), np.tile(np.arange(4), (3, 1))
    matrix = matrix_of(format, codes, grids, scales)
    assert np.array_equal(dequantize(matrix).astype(float), dequantize_in_numpy(matrix))
