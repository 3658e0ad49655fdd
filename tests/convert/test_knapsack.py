"""The solver against every combination there is."""

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moepack.convert import knapsack
from moepack.convert.knapsack import Knapsack, Option, undominated

OPTIONS = st.builds(Option, st.integers(0, 60), st.integers(0, 1000).map(lambda cost: cost / 8))
ITEMS = st.lists(st.lists(OPTIONS, min_size=1, max_size=4), min_size=1, max_size=5)


def best_of_all(items: list[list[Option]], capacity: int) -> float | None:
    """The least cost of any combination that fits."""
    sums = ((sum(o.size for o in picked), sum(o.cost for o in picked)) for picked in product(*items))
    return min((cost for size, cost in sums if size <= capacity), default=None)


@given(ITEMS, st.integers(0, 320), st.integers(0, 320))
@settings(max_examples=300, deadline=None)
def test_nothing_that_fits_is_cheaper(items: list[list[Option]], capacity: int, less: int) -> None:
    solved = Knapsack(items, capacity)
    for asked in (capacity, min(less, capacity)):
        expected, chosen = best_of_all(items, asked), solved.best(asked)
        assert (chosen is None) == (expected is None)
        if chosen is not None:
            picked = [item[index] for item, index in zip(items, chosen.options, strict=True)]
            assert chosen.size == sum(option.size for option in picked) <= asked
            assert chosen.cost == sum(option.cost for option in picked) == expected


@given(ITEMS, st.integers(0, 320))
@settings(max_examples=100, deadline=None)
def test_coarser_units_still_fit(items: list[list[Option]], capacity: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "MOST_UNITS", 16)
        chosen, expected = Knapsack(items, capacity).best(capacity), best_of_all(items, capacity)
    assert (chosen is None) == (expected is None)
    if chosen is not None and expected is not None:
        assert chosen.size <= capacity
        assert chosen.cost >= expected


def test_a_large_one_is_solved_in_moments() -> None:
    items = [[Option(16384 * 512 * (200 + i), 1 / (1 + i + layer)) for i in range(150)] for layer in range(60)]
    chosen = Knapsack(items, 60 * 16384 * 512 * 250).best(60 * 16384 * 512 * 250)
    assert chosen is not None
    assert chosen.size == 60 * 16384 * 512 * 250


@given(st.lists(OPTIONS, min_size=1, max_size=12))
def test_what_is_dominated_is_never_needed(options: list[Option]) -> None:
    kept = undominated(options)
    assert [options[index].size for index in kept] == sorted({options[index].size for index in kept})
    for option in options:
        assert any(options[index].size <= option.size and options[index].cost <= option.cost for index in kept)
    for before, after in pairwise(kept):
        assert options[after].cost < options[before].cost
