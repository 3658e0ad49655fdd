"""What may be wished of a recipe, and the account of the one that was chosen for it."""

from dataclasses import dataclass
from typing import TypeAlias

from ..layout.formats import Format
from .recipe import Recipe
from .sensitivities import Sensitivities

Formats: TypeAlias = tuple[Format, Format, Format]  # of gate, up and down


@dataclass(frozen=True)
class Wish:
    """How large the result may be: `bits` per expert weight, or `budget` bytes of the whole pack; one of them.

    Bits count codes and all that gives them their values, without the padding of records. `trunk` is None where it may
    be chosen.
    """

    method: str
    bits: float | None = None
    budget: int | None = None
    trunk: str | None = None


@dataclass(frozen=True)
class Step:
    """A change of one layer's formats: what it would add to the size, in the wish's measure, and to the cost."""

    layer: int
    before: Formats
    after: Formats
    size: int
    cost: float


@dataclass(frozen=True)
class Group:
    """Layers of the same formats, the bytes of their records together, and what they cost."""

    layers: str
    formats: Formats
    size: int
    cost: float


@dataclass(frozen=True)
class Choice:
    """A recipe, what it comes to, and what was not chosen.

    `size` and `capacity` are bytes of expert records, with their padding under a budget, without it for bits.
    `others` are (size, cost) at other capacities, `saving` and `spending` the steps that lose or gain the most
    accuracy per byte.
    """

    recipe: Recipe
    wish: Wish
    sensitivities: Sensitivities
    capacity: int
    size: int
    cost: float
    trunk_cost: float
    groups: tuple[Group, ...]
    others: tuple[tuple[int, float], ...]
    saving: Step | None
    spending: Step | None
