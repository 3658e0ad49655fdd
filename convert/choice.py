"""Choosing a recipe: the formats that fit a number of bytes or bits and cost the least accuracy.

What a recipe costs is the sum over layers and projections of sensitivity x relative squared weight error: with measured
sensitivities a prediction of the KL divergence at the output, which small errors add up to. The trunk, where it may be
chosen too, counts with its own error and TRUNK_WEIGHT times the sensitivity of all experts together.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TypeAlias, TypeVar

from ..layout.formats import Format, matrix_bytes
from ..layout.plan import TensorSpec, expert_shape
from ..layout.record import PROJECTIONS, ExpertShape, RecordLayout
from ..manifests.errors import UsageError
from ..manifests.progress import Progress
from ..manifests.rules import aligned
from ..manifests.schema import Projection
from .calibration.file import CalibrationFile
from .knapsack import Chosen, Knapsack, Option, undominated
from .plan import lay_out, told_of_experts
from .recipe import Coding, Codings, Recipe
from .recipefile import runs
from .sensitivities import Sensitivities
from .tensors import Source
from .weighing import Errors, candidates, weigh, weigh_trunk

TRUNK_CHOICES = ("affine4-g64", "affine8-g64", "source")
# Of 1.24 nats that Qwen3.5-397B-A17B lost when each tensor alone was cut to one format, all routed experts together
# lost 0.298 (Thireus, GGUF-Tool-Suite, kld_results): for equal errors, the trunk counts about three times as much.
TRUNK_WEIGHT = 3.0
OTHER_SIZES = (0.9, 0.95, 1.05, 1.1)

Formats: TypeAlias = tuple[Format, Format, Format]  # of gate, up and down
Key = TypeVar("Key")


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


def choose(
    source: Source,
    wish: Wish,
    sensitivities: Sensitivities | None,
    *,
    jobs: int,
    progress: Progress,
    calibration: CalibrationFile | None = None,
) -> Choice:
    """The recipe of least cost within the wish; under a budget, no format is changed only to shorten the manifest.

    `sensitivities` None: every matrix counts the same. `calibration` is what the pack's manifest will name. Raises
    UsageError, naming the smallest possible, if nothing is small enough.
    """
    known = sensitivities or Sensitivities.equal(source.model.num_layers)
    known.require_for(source.model)
    formats = candidates(source, wish.method)
    if not formats:
        raise UsageError("no format among which a recipe is chosen fits this model; name one with --expert-format")
    errors = weigh(source, formats, wish.method, jobs=jobs, progress=progress)
    shortest = None if wish.budget is None else _shortest(source, formats, wish)
    layers = _Layers(source, known, errors, shortest, padded=wish.budget is not None)
    return _Chooser(source, wish, known, layers, calibration).choice()


def _shortest(source: Source, formats: Sequence[Format], wish: Wish) -> Formats:
    """The formats that make, in every layer, the smallest pack: the smallest records, and the least told of them."""
    shape = expert_shape(source.model)

    def stride(each: Formats) -> int:
        return RecordLayout.of(shape, dict(zip(PROJECTIONS, each, strict=True))).stride

    def told(each: Formats) -> int:
        return told_of_experts(source.model, _codings([each] * source.model.num_layers, wish.method))

    strides = {each: stride(each) for each in product(formats, formats, formats)}
    least = min(strides.values())
    return min((each for each in strides if strides[each] == least), key=told)


def _codings(layers: Iterable[Formats], method: str) -> Codings:
    return tuple(
        {name: Coding(format_, method) for name, format_ in zip(PROJECTIONS, formats, strict=True)}
        for formats in layers
    )


@dataclass(frozen=True)
class _Layers:
    """The undominated combinations of formats of every layer, by size; and `shortest`, if given.

    Sizes are those of records, with their padding if `padded`.
    """

    source: Source
    sensitivities: Sensitivities
    errors: Errors
    shortest: Formats | None
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
        options = {name: _of_projection(shape, name, sensitivity[name], errors[name]) for name in PROJECTIONS}
        gate, up, down = (_undominated(options[name]) for name in PROJECTIONS)
        joined = {each: self._joined(options, each) for each in product(gate, up, down)}
        kept = _undominated(joined)
        if self.shortest is not None and self.shortest not in kept:
            kept[self.shortest] = self._joined(options, self.shortest)
        return list(kept.items())

    def _joined(self, options: Mapping[Projection, Mapping[Format, Option]], formats: Formats) -> Option:
        found = [options[name][format_] for name, format_ in zip(PROJECTIONS, formats, strict=True)]
        size = sum(option.size for option in found)
        size = (aligned(size) if self.padded else size) * self.source.model.num_experts
        return Option(size, sum(option.cost for option in found))


def _of_projection(
    shape: ExpertShape, projection: str, sensitivity: float, errors: Mapping[Format, float]
) -> dict[Format, Option]:
    rows, cols = shape.of(projection)
    return {each: Option(matrix_bytes(each, rows, cols), sensitivity * error) for each, error in errors.items()}


def _undominated(options: Mapping[Key, Option]) -> dict[Key, Option]:
    listed = list(options.items())
    return {listed[index][0]: listed[index][1] for index in undominated(list(options.values()))}


@dataclass(frozen=True)
class _Trunk:
    """A trunk format, the bytes of a pack besides its experts and what is told of them, and what it costs."""

    format: str
    specs: tuple[TensorSpec, ...]
    size: int
    cost: float


@dataclass(frozen=True)
class _Found:
    """What experts can have beside a trunk, and the bytes that their records might take."""

    trunk: _Trunk
    chosen: Chosen
    capacity: int


class _Chooser:
    """Solves a wish, and says what else there was."""

    def __init__(
        self,
        source: Source,
        wish: Wish,
        sensitivities: Sensitivities,
        layers: _Layers,
        calibration: CalibrationFile | None,
    ) -> None:
        self._source, self._wish, self._sensitivities, self._layers = source, wish, sensitivities, layers
        self._calibration = calibration
        self._trunks = self._possible_trunks()
        capacity = max(self._capacity(trunk) for trunk in self._trunks)
        self._knapsack = Knapsack(layers.options, int(capacity * OTHER_SIZES[-1]))

    def choice(self) -> Choice:
        found = self._best()
        trunk, chosen = found.trunk, found.chosen
        steps = list(self._steps(chosen))
        return Choice(
            recipe=Recipe.of(self._codings(chosen), trunk.format),
            wish=self._wish,
            sensitivities=self._sensitivities,
            capacity=found.capacity,
            size=chosen.size,
            cost=chosen.cost,
            trunk_cost=trunk.cost,
            groups=tuple(self._groups(chosen)),
            others=tuple(self._others(chosen)),
            saving=min((step for step in steps if step.size < 0), key=_per_byte, default=None),
            spending=max((step for step in steps if step.size > 0), key=_per_byte, default=None),
        )

    def _best(self) -> _Found:
        possible = [found for trunk in self._trunks if (found := self._beside(trunk)) is not None]
        if not possible:
            raise self._too_small()
        return min(possible, key=lambda found: found.trunk.cost + found.chosen.cost)

    def _beside(self, trunk: _Trunk) -> _Found | None:
        """The best that fits with what the manifest tells of it; that is only known of what has been chosen."""
        chosen = self._knapsack.best(self._capacity(trunk))
        while chosen is not None and chosen.size > self._capacity(trunk, chosen):
            chosen = self._knapsack.best(chosen.size - 1)
        if chosen is None and self._smallest.size <= self._capacity(trunk, self._smallest):
            chosen = self._smallest
        return None if chosen is None else _Found(trunk, chosen, self._capacity(trunk, chosen))

    @cached_property
    def _smallest(self) -> Chosen:
        """What makes the smallest pack; for bits, the smallest records."""
        shortest = self._layers.shortest
        if shortest is None:
            found = self._knapsack.best(self._knapsack.smallest)
            assert found is not None
            return found
        options = tuple(formats.index(shortest) for formats in self._layers.formats)
        picked = [layer[index] for layer, index in zip(self._layers.options, options, strict=True)]
        return Chosen(options, sum(option.size for option in picked), sum(option.cost for option in picked))

    def _possible_trunks(self) -> list[_Trunk]:
        """The trunks to choose from; of those that come to the same tensors, the one nearest the source."""
        free = self._wish.trunk is None and self._wish.budget is not None
        names = TRUNK_CHOICES if free else (self._wish.trunk or "source",)
        distinct = {trunk.specs: trunk for trunk in map(self._trunk, names)}
        return list(distinct.values())

    def _trunk(self, name: str) -> _Trunk:
        any_format = next(iter(self._layers.errors[0]["gate"]))
        recipe = Recipe(Coding(any_format, self._wish.method), name)
        packing = lay_out(self._source, recipe, self._calibration)
        plan, told = packing.plan, told_of_experts(self._source.model, packing.codings)
        others = plan.total_bytes - plan.expert_bytes + plan.manifest_bytes - told
        cost = TRUNK_WEIGHT * self._sensitivities.total * weigh_trunk(self._source, recipe)
        return _Trunk(name, plan.trunk, others, cost)

    def _capacity(self, trunk: _Trunk, chosen: Chosen | None = None) -> int:
        """Bytes that expert records may take; less, under a budget, what the manifest tells of `chosen`."""
        if self._wish.budget is not None:
            return self._wish.budget - trunk.size - self._told(chosen)
        assert self._wish.bits is not None
        return int(self._wish.bits * self._weights / 8)

    @property
    def _weights(self) -> int:
        model = self._source.model
        return 3 * model.hidden_size * model.moe_intermediate_size * model.num_experts * model.num_layers

    def _told(self, chosen: Chosen | None) -> int:
        return 0 if chosen is None else told_of_experts(self._source.model, self._codings(chosen))

    def _too_small(self) -> UsageError:
        if self._wish.budget is not None:
            smallest = min(trunk.size for trunk in self._trunks) + self._smallest.size + self._told(self._smallest)
            return UsageError(
                f"a budget of {self._wish.budget} bytes is below the smallest recipe, whose pack has {smallest} bytes"
                f" ({smallest / 1e9:.3f} GB); give --budget {smallest} or more"
            )
        least = math.ceil(self._knapsack.smallest * 8 / self._weights * 10_000) / 10_000
        wished = f"{self._wish.bits} bits per expert weight"
        return UsageError(f"{wished} are below the smallest recipe, which has {least:.4f}")

    def _codings(self, chosen: Chosen) -> Codings:
        return _codings(self._formats(chosen), self._wish.method)

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
