"""One option of each item, so that the sizes fit a capacity and the costs add up to the least (multiple choice).

Solved by dynamic programming over capacities in whole units: exact while the sizes' common unit divides the capacity
into at most MOST_UNITS; coarser units are rounded up, so that what is chosen always fits. Knows only numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_UNITS = 2**17


@dataclass(frozen=True)
class Option:
    """One way to have an item."""

    size: int
    cost: float


@dataclass(frozen=True)
class Chosen:
    """Of each item the index of its option, and what they come to."""

    options: tuple[int, ...]
    size: int
    cost: float


class Knapsack:
    """The least costs of all capacities up to `capacity`; every item needs at least one option."""

    def __init__(self, items: Sequence[Sequence[Option]], capacity: int) -> None:
        self._items = items
        self._least = [min(option.size for option in item) for item in items]
        room = min(max(0, capacity - self.smallest), self.largest - self.smallest)
        extras = [[option.size - least for option in item] for item, least in zip(items, self._least, strict=True)]
        common = math.gcd(*(extra for item in extras for extra in item)) or 1
        self._unit = max(common, -(-room // MOST_UNITS))
        self._extras = [[-(-extra // self._unit) for extra in item] for item in extras]
        self._choices = self._solve(room // self._unit)

    @property
    def smallest(self) -> int:
        """The least capacity that all items fit into."""
        return sum(self._least)

    @property
    def largest(self) -> int:
        """The size of every item's largest option: more capacity is of no use."""
        return sum(max(option.size for option in item) for item in self._items)

    def best(self, capacity: int) -> Chosen | None:
        """The cheapest choice of at most `capacity`, None if there is none; capacities above the first are cut."""
        if capacity < self.smallest:
            return None
        units = min((capacity - self.smallest) // self._unit, len(self._choices[0]) - 1) if self._items else 0
        options: list[int] = []
        for choices, extras in zip(reversed(self._choices), reversed(self._extras), strict=True):
            options.append(int(choices[units]))
            units -= extras[options[-1]]
        options.reverse()
        picked = [item[index] for item, index in zip(self._items, options, strict=True)]
        size, cost = sum(option.size for option in picked), math.fsum(option.cost for option in picked)
        return Chosen(tuple(options), size, cost)

    def _solve(self, units: int) -> list[NDArray[np.int32]]:
        """Of every item, for each number of units that it and the items before may take, its option."""
        least = np.zeros(units + 1)
        choices = []
        for item, extras in zip(self._items, self._extras, strict=True):
            costs, chosen = np.full(units + 1, np.inf), np.zeros(units + 1, np.int32)
            for index, (option, extra) in enumerate(zip(item, extras, strict=True)):
                if extra <= units:
                    candidate = least[: units + 1 - extra] + option.cost
                    better = candidate < costs[extra:]
                    costs[extra:][better] = candidate[better]
                    chosen[extra:][better] = index
            choices.append(chosen)
            least = costs
        return choices


def undominated(options: Sequence[Option]) -> list[int]:
    """The indices of options that are cheaper than every smaller one, by size; of equal ones the first."""
    order = sorted(range(len(options)), key=lambda index: (options[index].size, options[index].cost, index))
    kept: list[int] = []
    for index in order:
        if not kept or options[index].cost < options[kept[-1]].cost:
            kept.append(index)
    return kept
