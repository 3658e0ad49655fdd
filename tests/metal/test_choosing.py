"""The k largest of many numbers, in one launch or two, against numpy."""

import numpy as np
import pytest
from matrices import floats
from metal.running import kernel

from moepack.runtime.backends.metal.launches import choice, choice_grid
from moepack.runtime.backends.metal.library import plain

NOBODY = 0xFFFFFFFF


def top_k(numbers: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """values and ids of the k largest: launched on the numbers, then on what the blocks found, until one is left."""
    values, ids, first = numbers, np.zeros(1, np.uint32), True
    while first or len(values) > k:
        grid, asked = choice_grid(len(values)), choice(len(values), k, first=first)
        out = (np.full(grid[0] * k, 7, np.float32), np.full(grid[0] * k, 7, np.uint32))
        largest = kernel(plain("sampling.metal"), "top_k")
        values, ids = largest(grid, values, ids, *out, asked, check=len(values) < 200)
        first = False
    return values, ids


@pytest.mark.parametrize(("count", "k"), [(1, 1), (150, 1), (150, 20), (4096, 3), (4097, 1), (9000, 5)])
@pytest.mark.parametrize("decimals", [0, 6])
def test_the_largest_numbers_and_ties_to_the_lower_id(count: int, k: int, decimals: int) -> None:
    numbers = floats(np.random.default_rng(count), count, scale=3.0).round(decimals)
    values, ids = top_k(numbers, k)
    wanted = np.argsort(-numbers, kind="stable")[:k]
    assert ids.tolist() == wanted.tolist()
    assert np.array_equal(values, numbers[wanted])


def test_fewer_numbers_than_places_and_what_is_not_a_number() -> None:
    values, ids = top_k(np.array([np.nan, -np.inf, 2, np.inf, -1], np.float32), 6)
    assert ids.tolist() == [3, 2, 4, 0, 1, NOBODY]
    assert values.tolist() == [np.inf, 2, -1, -np.inf, -np.inf, -np.inf]
