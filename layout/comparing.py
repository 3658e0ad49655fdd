"""Where two packs differ: what their digests leave open is read, and no more.

Of the trunk, the tensors; of records, the components, if several experts and several components of a layer differ.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct

from ..manifests import diff
from ..manifests.diff import Difference, LayerChange
from ..manifests.errors import MoepackError
from .reader import Pack
from .record import RecordLayout
from .tensorfile import Array, TensorFile

MOST_LOCATED = 64  # records read of each pack; packs that differ everywhere need no more to tell that


class RecordChange(Struct, frozen=True):
    """A record that differs, and in which components."""

    layer: int
    expert: int
    components: list[str]


class Located(Struct, frozen=True):
    """How two packs differ, and where: `tensors` of the trunk by name, and the first records, as far as it was told.

    `records_left` differ too, but which of their components do was not looked up.
    """

    difference: Difference
    tensors: list[diff.Change]
    records: list[RecordChange]
    records_left: int


def locate(a: Path, b: Path) -> Located:
    """Compare two packs. Raises as `Pack.open` does for the first that is not sound."""
    difference = diff.compare(a, b)
    if difference.identical:
        return Located(difference, [], [], 0)
    try:
        with Pack.open(a) as one, Pack.open(b) as other:
            tensors = list(_tensors(one.trunk, other.trunk)) if _trunk_differs(difference, one) else []
            told, left = _records(difference.layers, one, other)
    except MoepackError as error:
        difference.remarks.append(f"content was not compared: {error}")
        return Located(difference, [], [], _count(difference.layers))
    return Located(difference, tensors, told, left)


def _trunk_differs(difference: Difference, pack: Pack) -> bool:
    return any(change.field == pack.manifest.trunk.file for change in difference.files)


def _tensors(a: TensorFile, b: TensorFile) -> Iterator[diff.Change]:
    for name in sorted(a.entries.keys() | b.entries.keys()):
        one, other = a.entries.get(name), b.entries.get(name)
        told = [f"{entry.dtype} {list(entry.shape)}" if entry else diff.ABSENT for entry in (one, other)]
        if told[0] == told[1]:
            told = [file.blake3_of(name) for file in (a, b)]
        if told[0] != told[1]:
            yield diff.Change(name, *told)


def _records(layers: list[LayerChange], a: Pack, b: Pack) -> tuple[list[RecordChange], int]:
    told: list[RecordChange] = []
    for layer in layers:
        if layer.components is None or layer.experts is None:
            continue
        if len(layer.experts) == 1 or len(layer.components) == 1:  # rows and columns cross in one way only
            told += [RecordChange(layer.layer, expert, layer.components) for expert in layer.experts]
            continue
        for expert in layer.experts[: max(0, MOST_LOCATED - len(told))]:
            told.append(RecordChange(layer.layer, expert, _components(layer.layer, expert, a, b)))
    return told, _count(layers) - len(told)


def _count(layers: list[LayerChange]) -> int:
    return sum(len(layer.experts or ()) for layer in layers)


def _components(layer: int, expert: int, a: Pack, b: Pack) -> list[str]:
    return differing(a.records[layer], *(pack.stored_record(layer, expert) for pack in (a, b)))


def differing(layout: RecordLayout, one: Array, other: Array) -> list[str]:
    """The components in which two records of a layout differ, and "padding"."""
    ends = [(part.name, part.offset, part.offset + part.size) for part in layout.components]
    ends.append(("padding", layout.size, layout.stride))
    return [name for name, start, end in ends if not np.array_equal(one[start:end], other[start:end])]
