"""Which formats a layer's projections can have together: size and cost of every combination worth considering."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TypeVar

from ..layout.formats import Format, matrix_bytes
from ..layout.plan import expert_shape
from ..layout.record import PROJECTIONS, ExpertShape, RecordLayout
from ..manifests.rules import aligned
from ..manifests.schema import Projection
from .knapsack import Option, undominated
from .plan import told_of_experts
from .recipe import Coding, Codings
from .sensitivities import Sensitivities
from .tensors import Source
from .weighing import Errors
from .wish import Formats, Wish

Key = TypeVar("Key")


@dataclass(frozen=True)
class Layers:
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
        """Of each layer, the combinations."""
        return [[formats for formats, _ in layer] for layer in self._listed]

    @cached_property
    def options(self) -> list[list[Option]]:
        """Of each layer, what every combination has in bytes and costs, in the same order."""
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


def shortest_formats(source: Source, formats: Sequence[Format], wish: Wish) -> Formats:
    """The formats that make, in every layer, the smallest pack: the smallest records, and the least told of them."""
    shape = expert_shape(source.model)

    def stride(each: Formats) -> int:
        return RecordLayout.of(shape, dict(zip(PROJECTIONS, each, strict=True))).stride

    def told(each: Formats) -> int:
        return told_of_experts(source.model, codings_of([each] * source.model.num_layers, wish.method))

    strides = {each: stride(each) for each in product(formats, formats, formats)}
    least = min(strides.values())
    return min((each for each in strides if strides[each] == least), key=told)


def codings_of(layers: Iterable[Formats], method: str) -> Codings:
    """The codings of layers of these formats, all of one method."""
    return tuple(
        {name: Coding(format_, method) for name, format_ in zip(PROJECTIONS, formats, strict=True)}
        for formats in layers
    )
