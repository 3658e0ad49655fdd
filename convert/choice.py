"""Choosing a recipe: the formats that fit a number of bytes or bits and cost the least accuracy.

What a recipe costs is the sum over layers and projections of sensitivity x relative squared weight error: with measured
sensitivities a prediction of the KL divergence at the output, which small errors add up to. The trunk, where it may be
chosen too, counts with its own error and TRUNK_WEIGHT times the sensitivity of all experts together.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TypeAlias

from ..layout.formats import Format, matrix_bytes
from ..layout.plan import TensorSpec, expert_shape
from ..layout.record import PROJECTIONS, ExpertShape
from ..manifests.errors import UsageError
from ..manifests.progress import Progress
from ..manifests.rules import aligned
from ..manifests.schema import Projection
from .knapsack import Chosen, Knapsack, Option, undominated
from .plan import lay_out
from .recipe import Coding, Codings, Recipe
from .recipefile import runs
from .sensitivities import Sensitivities
from .tensors import Source
from .weighing import Errors, candidates, weigh, weigh_trunk

TRUNK_CHOICES = ("affine4-g64", "affine8-g64", "source")
# Of 1.24 nats that Qwen3.5-397B-A17B lost when each tensor alone was cut to one format, all routed experts together
# lost 0.298 (Thireus, GGUF-Tool-Suite, kld_results): for equal errors, the trunk counts about three times as much.
TRUNK_WEIGHT = 3.0
LONGEST_OVERRIDE = 1024  # bytes per layer by which a mixed recipe may lengthen the manifest
NAMES: tuple[Projection, ...] = ("gate", "up", "down")
OTHER_SIZES = (0.9, 0.95, 1.05, 1.1)

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


def choose(source: Source, wish: Wish, sensitivities: Sensitivities | None, *, jobs: int, progress: Progress) -> Choice:
    """The recipe of least cost within the wish.

    `sensitivities` None: every matrix counts the same. Raises UsageError, naming the smallest possible, if nothing is
    small enough.
    """
    known = sensitivities or Sensitivities.equal(source.model.num_layers)
    known.require_for(source.model)
    formats = candidates(source, wish.method)
    if not formats:
        raise UsageError("no format among which a recipe is chosen fits this model; name one with --expert-format")
    errors = weigh(source, formats, wish.method, jobs=jobs, progress=progress)
    return _Chooser(source, wish, known, _Layers(source, known, errors, padded=wish.budget is not None)).choice()


@dataclass(frozen=True)
class _Layers:
    """The undominated combinations of formats of every layer, by size."""

    source: Source
    sensitivities: Sensitivities
    errors: Errors
    padded: bool

    @cached_property
    def formats(self) -> list[list[Formats]]:
        return [[formats for formats, _ in layer] for layer in self._listed]

    @cached_property
    def options(self) -> list[list[Option]]:
        return [[option for _, option in layer] for layer in self._listed]

    @cached_property
    def _listed(self) -> list[list[tuple[Formats, Option]]]:
        return [
            self._of_layer(sensitivity, errors)
            for sensitivity, errors in zip(self.sensitivities.layers, self.errors, strict=True)
        ]

    def _of_layer(
        self, sensitivity: Mapping[Projection, float], errors: Mapping[str, Mapping[Format, float]]
    ) -> list[tuple[Formats, Option]]:
        shape = expert_shape(self.source.model)
        per_projection = [_of_projection(shape, name, sensitivity[name], errors[name]) for name in NAMES]
        found = [
            ((gate[0], up[0], down[0]), self._joined(gate[1], up[1], down[1]))
            for gate, up, down in product(*per_projection)
        ]
        return [found[index] for index in undominated([option for _, option in found])]

    def _joined(self, *options: Option) -> Option:
        size = sum(option.size for option in options)
        size = (aligned(size) if self.padded else size) * self.source.model.num_experts
        return Option(size, sum(option.cost for option in options))


def _of_projection(
    shape: ExpertShape, projection: str, sensitivity: float, errors: Mapping[Format, float]
) -> list[tuple[Format, Option]]:
    formats = list(errors)
    options = [
        Option(matrix_bytes(format_, *shape.of(projection)), sensitivity * errors[format_]) for format_ in formats
    ]
    return [(formats[index], options[index]) for index in undominated(options)]


@dataclass(frozen=True)
class _Trunk:
    """A trunk format, the bytes of a pack besides its experts, and what it costs."""

    format: str
    specs: tuple[TensorSpec, ...]
    size: int
    cost: float


class _Chooser:
    """Solves a wish, and says what else there was."""

    def __init__(self, source: Source, wish: Wish, sensitivities: Sensitivities, layers: _Layers) -> None:
        self._source, self._wish, self._sensitivities, self._layers = source, wish, sensitivities, layers
        self._trunks = self._possible_trunks()
        capacity = max(self._capacity(trunk) for trunk in self._trunks)
        self._knapsack = Knapsack(layers.options, int(capacity * OTHER_SIZES[-1]))

    def choice(self) -> Choice:
        trunk, chosen = self._best()
        steps = list(self._steps(chosen))
        return Choice(
            recipe=Recipe.of(self._codings(chosen), trunk.format),
            wish=self._wish,
            sensitivities=self._sensitivities,
            capacity=self._capacity(trunk),
            size=chosen.size,
            cost=chosen.cost,
            trunk_cost=trunk.cost,
            groups=tuple(self._groups(chosen)),
            others=tuple(self._others(chosen)),
            saving=min((step for step in steps if step.size < 0), key=_per_byte, default=None),
            spending=max((step for step in steps if step.size > 0), key=_per_byte, default=None),
        )

    def _best(self) -> tuple[_Trunk, Chosen]:
        found = [(trunk, self._knapsack.best(self._capacity(trunk))) for trunk in self._trunks]
        possible = [(trunk, chosen) for trunk, chosen in found if chosen is not None]
        if not possible:
            raise self._too_small()
        return min(possible, key=lambda pair: pair[0].cost + pair[1].cost)

    def _possible_trunks(self) -> list[_Trunk]:
        """The trunks to choose from; of those that come to the same tensors, the one nearest the source."""
        free = self._wish.trunk is None and self._wish.budget is not None
        names = TRUNK_CHOICES if free else (self._wish.trunk or "source",)
        distinct = {trunk.specs: trunk for trunk in map(self._trunk, names)}
        return list(distinct.values())

    def _trunk(self, name: str) -> _Trunk:
        any_format = next(iter(self._layers.errors[0]["gate"]))
        recipe = Recipe(Coding(any_format, self._wish.method), name)
        plan = lay_out(self._source, recipe).plan
        others = plan.total_bytes - plan.expert_bytes + plan.manifest_bytes
        cost = TRUNK_WEIGHT * self._sensitivities.total * weigh_trunk(self._source, recipe)
        return _Trunk(name, plan.trunk, others + LONGEST_OVERRIDE * plan.model.num_layers, cost)

    def _capacity(self, trunk: _Trunk) -> int:
        """Bytes that expert records may take."""
        if self._wish.budget is not None:
            return self._wish.budget - trunk.size
        assert self._wish.bits is not None
        return int(self._wish.bits * self._weights / 8)

    @property
    def _weights(self) -> int:
        model = self._source.model
        return 3 * model.hidden_size * model.moe_intermediate_size * model.num_experts * model.num_layers

    def _too_small(self) -> UsageError:
        smallest = min(trunk.size for trunk in self._trunks) + self._knapsack.smallest
        if self._wish.budget is not None:
            return UsageError(
                f"a budget of {self._wish.budget} bytes is below the smallest recipe, whose pack has {smallest} bytes"
                f" ({smallest / 1e9:.3f} GB)"
            )
        least = math.ceil(self._knapsack.smallest * 8 / self._weights * 10_000) / 10_000
        wished = f"{self._wish.bits} bits per expert weight"
        return UsageError(f"{wished} are below the smallest recipe, which has {least:.4f}")

    def _codings(self, chosen: Chosen) -> Codings:
        return tuple(
            {name: Coding(format_, self._wish.method) for name, format_ in zip(PROJECTIONS, formats, strict=True)}
            for formats in self._formats(chosen)
        )

    def _formats(self, chosen: Chosen) -> list[Formats]:
        return [formats[index] for formats, index in zip(self._layers.formats, chosen.options, strict=True)]

    def _groups(self, chosen: Chosen) -> Iterator[Group]:
        layers: dict[Formats, list[int]] = {}
        for layer, formats in enumerate(self._formats(chosen)):
            layers.setdefault(formats, []).append(layer)
        for formats, found in layers.items():
            options = [self._layers.options[layer][chosen.options[layer]] for layer in found]
            size, cost = sum(option.size for option in options), sum(option.cost for option in options)
            yield Group(runs(tuple(found)), formats, size, cost)

    def _others(self, chosen: Chosen) -> Iterator[tuple[int, float]]:
        """What other capacities would give, by size."""
        found = (self._knapsack.best(int(chosen.size * factor)) for factor in OTHER_SIZES)
        yield from dict.fromkeys((other.size, other.cost) for other in found if other and other.size != chosen.size)

    def _steps(self, chosen: Chosen) -> Iterator[Step]:
        for layer, taken in enumerate(chosen.options):
            formats, options = self._layers.formats[layer], self._layers.options[layer]
            for index, option in enumerate(options):
                if index != taken:
                    size, cost = option.size - options[taken].size, option.cost - options[taken].cost
                    yield Step(layer, formats[taken], formats[index], size, cost)


def _per_byte(step: Step) -> float:
    """Accuracy lost per byte saved, or gained per byte spent."""
    return -step.cost / step.size
