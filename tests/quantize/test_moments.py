"""Second moments and their shrinking, against plain numpy in float64."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moepack.quantize import calibration, moments
from moepack.quantize.calibration import (
    CORRELATION_ONE,
    LEAST_IMPORTANCE,
    OFF_DIAGONAL,
    POOL_WEIGHT,
    Halves,
    Moments,
    input_statistics,
    triangle,
)
from moepack.quantize.moments import Accumulator, NumpyAccumulator, TorchAccumulator

STEP = 1 / CORRELATION_ONE


def rows_of(seed: int, count: int, cols: int = 24) -> np.ndarray:
    """Correlated rows whose channels differ widely in size, one of them silent."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(count, cols)) @ random.normal(size=(cols, cols)) * np.exp(random.normal(size=cols))
    mixed[:, 5] = 0
    return mixed.astype(np.float32)


def measured(rows: np.ndarray, *, correlations: bool = True) -> Moments:
    total = rows.astype(np.float64).T @ rows.astype(np.float64)
    mean = (total.diagonal() / max(len(rows), 1)).astype(np.float32)
    return Moments(len(rows), mean, calibration.correlations(total) if correlations else None)


def second_moments(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float64).T @ rows.astype(np.float64) / max(len(rows), 1)


def relative(matrix: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Differences in units of the roots of both diagonal elements."""
    roots = np.sqrt(np.maximum(wanted.diagonal(), 1e-300))
    return np.abs(matrix - wanted) / np.outer(roots, roots)


@pytest.mark.parametrize("make", [NumpyAccumulator, lambda cols: TorchAccumulator(cols, torch, "cpu")])
@pytest.mark.parametrize("cuts", [[0, 3000], [0, 1, 1, 1023, 1024, 2050, 3000]])
def test_products_add_up(make: Callable[[int], Accumulator], cuts: list[int]) -> None:
    rows = rows_of(1, 3000)
    accumulator = make(24)
    accumulator.add(rows)
    accumulator.clear()
    for first, last in pairwise(cuts):
        accumulator.add(rows[first:last])
    total = accumulator.total()
    assert total.dtype == np.float64
    assert np.array_equal(total, total.T)
    assert relative(total, second_moments(rows) * len(rows)).max() < 1e-6


def test_float32_products_do_not_lose_small_sums_to_large_ones() -> None:
    rows = np.vstack([np.full((1, 1), 3e4), np.full((200_000, 1), 1e-2)]).astype(np.float32)
    accumulator = NumpyAccumulator(1)
    accumulator.add(rows)
    assert accumulator.total()[0, 0] - 9e8 == pytest.approx(20, rel=0.05)


def test_devices() -> None:
    assert moments.choose_device("cpu") == "cpu"
    assert moments.choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="no device is called 'tpu'"):
        moments.choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU that torch can use"):
            moments.choose_device("cuda")


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 33))
@settings(deadline=None, max_examples=60)
def test_stored_moments_are_the_measured_ones(seed: int, count: int, cols: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(count, cols)).astype(np.float32)
    found = measured(rows)
    assert found.correlations is not None
    assert found.correlations.shape == (triangle(cols),)
    matrix = found.matrix(found.diagonal)
    assert matrix.dtype == np.float32
    assert np.array_equal(matrix, matrix.T)
    assert relative(matrix, second_moments(rows)).max() < STEP


def test_a_silent_channel_has_no_correlations() -> None:
    matrix = measured(rows_of(2, 100)).matrix(np.ones(24, np.float32))
    assert matrix[5, 5] == 1
    assert not np.delete(matrix[5], 5).any()


@pytest.mark.parametrize("count", [1, 40, 5000])
def test_an_experts_own_moments_are_shrunk_toward_the_pool(count: int) -> None:
    own, held_out, pool, pool_held_out = rows_of(3, count), rows_of(4, count), rows_of(5, 9000), rows_of(6, 2000)
    found = input_statistics(
        Halves(measured(own), measured(held_out)), Halves(measured(pool), measured(pool_held_out)), hessians=True
    )
    weight = count / (count + POOL_WEIGHT)
    wanted = weight * second_moments(own) + (1 - weight) * second_moments(pool)
    judged = weight * second_moments(held_out) + (1 - weight) * second_moments(pool_held_out)
    assert found.hessian is not None
    assert found.held_out is not None
    alive = np.arange(24) != 5
    assert np.allclose(found.importance[alive], wanted.diagonal()[alive], rtol=1e-5)
    assert np.array_equal(found.hessian.diagonal(), found.importance)
    off = ~np.eye(24, dtype=bool) & np.outer(alive, alive)
    assert relative(found.hessian / OFF_DIAGONAL, wanted)[off].max() < 2 * STEP
    assert relative(found.held_out, judged)[np.outer(alive, alive)].max() < 2 * STEP
    assert found.hessian.dtype == found.held_out.dtype == found.importance.dtype == np.float32


def test_an_expert_never_seen_has_the_pools_moments() -> None:
    nothing = measured(np.zeros((0, 24), np.float32))
    pool = Halves(measured(rows_of(5, 9000)), measured(rows_of(6, 2000)))
    found = input_statistics(Halves(nothing, nothing), pool, hessians=True)
    assert found.hessian is not None
    assert np.allclose(np.delete(found.importance, 5), np.delete(pool.fit.diagonal, 5), rtol=1e-6)
    wanted = pool.fit.matrix(pool.fit.diagonal) * OFF_DIAGONAL
    assert np.allclose(found.hessian[0, 1:5], wanted[0, 1:5], rtol=1e-5)


def test_without_own_correlations_those_of_the_pool_are_on_the_shrunk_diagonal() -> None:
    own, pool = measured(rows_of(3, 300), correlations=False), measured(rows_of(5, 9000))
    found = input_statistics(Halves(own, own), Halves(pool, pool), hessians=True)
    assert found.hessian is not None
    assert found.held_out is not None
    weight = 300 / (300 + POOL_WEIGHT)
    wanted = weight * own.diagonal.astype(float) + (1 - weight) * pool.diagonal
    assert np.allclose(np.delete(found.importance, 5), np.delete(wanted, 5), rtol=1e-5)
    roots = np.sqrt(found.importance.astype(float))
    pooled = np.sqrt(pool.diagonal.astype(float) + 1e-300)
    correlation = second_moments(rows_of(5, 9000)) / np.outer(pooled, pooled)
    assert np.allclose((found.held_out / np.outer(roots, roots))[:5, :5], correlation[:5, :5], atol=2 * STEP)


def test_importance_is_never_zero() -> None:
    silent = Moments(10, np.zeros(8, np.float32), np.zeros(28, np.int16))
    found = input_statistics(Halves(silent, silent), Halves(silent, silent), hessians=True)
    assert (found.importance == 1).all()
    assert np.array_equal(found.hessian, np.eye(8, dtype=np.float32))
    loud = measured(rows_of(5, 9000))
    found = input_statistics(Halves(loud, loud), Halves(loud, loud), hessians=False)
    assert found.importance[5] == pytest.approx(found.importance.max() * LEAST_IMPORTANCE)
    assert found.hessian is found.held_out is None


def test_hessians_stay_positive_definite_with_few_rows() -> None:
    own, pool = measured(rows_of(3, 3, 96)), measured(rows_of(5, 30, 96))
    found = input_statistics(Halves(own, own), Halves(pool, pool), hessians=True)
    assert found.hessian is not None
    roots = np.sqrt(found.importance.astype(float))
    assert np.linalg.eigvalsh(found.hessian / np.outer(roots, roots)).min() > (1 - OFF_DIAGONAL) / 2
