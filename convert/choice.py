"""Choosing a recipe: the formats that fit a number of bytes or bits and cost the least accuracy.

What a recipe costs is the sum over layers and projections of sensitivity x relative squared weight error: with measured
sensitivities a prediction of the KL divergence at the output, which small errors add up to. The trunk, where it may be
chosen too, counts with its own error and TRUNK_WEIGHT times the sensitivity of all experts together.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ..layout.plan import TensorSpec
from ..manifests.errors import UsageError
from ..manifests.progress import Progress
from .calibration.file import CalibrationFile
from .combinations import Layers, codings_of, shortest_formats
from .knapsack import Chosen, Knapsack
from .plan import lay_out, told_of_experts
from .recipe import Coding, Codings, Recipe
from .recipefile import runs
from .sensitivities import Sensitivities
from .tensors import Source
from .weighing import candidates, weigh, weigh_trunk
from .wish import Choice, Formats, Group, Step, Wish

TRUNK_CHOICES = ("affine4-g64", "affine8-g64", "source")
# Of 1.24 nats that Qwen3.5-397B-A17B lost when each tensor alone was cut to one format, all routed experts together
# lost 0.298 (Thireus, GGUF-Tool-Suite, kld_results): for equal errors, the trunk counts about three times as much.
TRUNK_WEIGHT = 3.0
OTHER_SIZES = (0.9, 0.95, 1.05, 1.1)


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
    shortest = None if wish.budget is None else shortest_formats(source, formats, wish)
    layers = Layers(source, known, errors, shortest, padded=wish.budget is not None)
    return _Chooser(source, wish, known, layers, calibration).choice()


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
        layers: Layers,
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
        return codings_of(self._formats(chosen), self._wish.method)

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
