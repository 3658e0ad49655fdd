"""The expert record: the order, offsets and sizes of one expert's tensors, and its aligned stride.

gate, up, down; of each the arrays of its format, codes (`weight`) first; nothing between them; zeros up to the stride.
Every expert of a layer has the same layout, so expert e lies at `e * stride` of its layer file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..manifests.rules import ALIGNMENT, PROJECTIONS, aligned
from .formats import Format, part_bytes

__all__ = ["ALIGNMENT", "PROJECTIONS", "Component", "ExpertShape", "RecordLayout"]


@dataclass(frozen=True)
class ExpertShape:
    """One expert's shapes: gate and up are [intermediate, hidden], down is [hidden, intermediate]."""

    hidden: int
    intermediate: int

    def of(self, projection: str) -> tuple[int, int]:
        """(rows, cols) = (outputs, inputs) of a projection."""
        return (self.hidden, self.intermediate) if projection == "down" else (self.intermediate, self.hidden)


@dataclass(frozen=True)
class Component:
    """One tensor of a record: `dtype` is "uint32" for codes, "uint8" for grids, "bfloat16" for scales and biases."""

    name: str
    offset: int
    size: int
    dtype: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class RecordLayout:
    """Where each component of a record lies. `size` bytes are used, the rest up to `stride` is zero."""

    shape: ExpertShape
    formats: Mapping[str, Format]
    components: tuple[Component, ...]
    size: int
    stride: int

    @classmethod
    def of(cls, shape: ExpertShape, formats: Mapping[str, Format]) -> "RecordLayout":
        """Lay out the three projections of `shape`. Raises ValueError if a row does not divide into whole groups."""
        components = tuple(_place(_components(shape, formats)))
        size = components[-1].offset + components[-1].size
        return cls(shape, dict(formats), components, size, aligned(size))

    def __getitem__(self, name: str) -> Component:
        """The component called `name`, such as "gate.scales"."""
        return next(component for component in self.components if component.name == name)


def _components(shape: ExpertShape, formats: Mapping[str, Format]) -> Iterator[tuple[str, str, tuple[int, int]]]:
    for projection in PROJECTIONS:
        rows, cols = shape.of(projection)
        format_ = formats[projection]
        if not format_.fits(cols):
            raise ValueError(f"{projection} has {cols} inputs, which groups of {format_.divisor} do not divide")
        for part, dtype, size in format_.parts(rows, cols):
            yield f"{projection}.{part}", dtype, size


def _place(tensors: Iterator[tuple[str, str, tuple[int, int]]]) -> Iterator[Component]:
    offset = 0
    for name, dtype, shape in tensors:
        size = part_bytes(dtype, shape)
        yield Component(name, offset, size, dtype, shape)
        offset += size
