"""A sequence's state between two positions, copied to the host: what it takes to go on from the second one.

Rows of key/value caches are those of the stretch alone, since earlier ones never change; convolutions and recurrent
states are whole, as they were at its end, because nothing but computing leads back from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..backends.base import AttentionState, Backend, DeltaState, Floats, Tensor
from ..state import State, copied

LayerCopy: TypeAlias = tuple[Floats, Floats]  # keys and values of the stretch, or convolution and memory at its end


@dataclass(frozen=True)
class Snapshot:
    """Positions from `first` to `last`, exclusive; `layers` as LayerCopy says."""

    first: int
    last: int
    layers: tuple[LayerCopy, ...]

    @property
    def size(self) -> int:
        """Bytes of its arrays."""
        return sum(array.nbytes for copies in self.layers for array in copies)

    @classmethod
    def of(cls, state: State, first: int, last: int, backend: Backend) -> "Snapshot":
        """The state's positions from `first` to `last`, its own or one that the last pass marked.

        Between forward passes only. Raises KeyError for another position; a marked one is given once.
        """
        recurrent = iter(_recurrent(state, backend) if last == state.position else state.marked.pop(last))
        rows = slice(first, last)
        copies = [
            (copied(layer.keys[rows], backend), copied(layer.values[rows], backend))
            if isinstance(layer, AttentionState)
            else next(recurrent)
            for layer in state.layers
        ]
        return cls(first, last, tuple(copies))


def restore(state: State, snapshots: Sequence[Snapshot], backend: Backend) -> None:
    """Bring a state of any position to the end of snapshots that follow each other from 0 on; without any, to 0.

    Raises ValueError if they do not. Between forward passes only.
    """
    ends = [0, *(each.last for each in snapshots)]
    if [each.first for each in snapshots] != ends[:-1]:
        raise ValueError("snapshots to restore do not follow each other")
    for index, layer in enumerate(state.layers):
        if isinstance(layer, AttentionState):
            _restore_caches(layer, index, snapshots, backend)
        elif snapshots:
            conv, memory = snapshots[-1].layers[index]
            backend.write(layer.conv, conv)
            backend.write(layer.memory, memory)
        else:
            for tensor in (layer.conv, layer.memory):
                backend.write(tensor, np.zeros_like(backend.to_host(tensor)))
    state.position = ends[-1]


def copy(state: State, source: State, backend: Backend) -> None:
    """Bring a state of any position to where another of the same model is, without memory for what is between.

    Between forward passes only.
    """
    rows = slice(0, source.position)
    for own, other in zip(state.layers, source.layers, strict=True):
        for tensor, values in zip(_tensors(own, rows), _tensors(other, rows), strict=True):
            backend.write(tensor, backend.to_host(values))
    state.position = source.position


def rewind(state: State, snapshot: Snapshot, backend: Backend) -> None:
    """Bring a state that has passed the end of a snapshot back there; its caches still hold the rows before.

    The snapshot needs no rows. Between forward passes only, or after one that failed.
    """
    for layer, (conv, memory) in zip(state.layers, snapshot.layers, strict=True):
        if not isinstance(layer, AttentionState):
            backend.write(layer.conv, conv)
            backend.write(layer.memory, memory)
    state.position = snapshot.last


def _tensors(layer: AttentionState | DeltaState, rows: slice) -> tuple[Tensor, Tensor]:
    if isinstance(layer, AttentionState):
        return layer.keys[rows], layer.values[rows]
    return layer.conv, layer.memory


def _restore_caches(layer: AttentionState, index: int, snapshots: Sequence[Snapshot], backend: Backend) -> None:
    for each in snapshots:
        rows, (keys, values) = slice(each.first, each.last), each.layers[index]
        backend.write(layer.keys[rows], keys)
        backend.write(layer.values[rows], values)


def _recurrent(state: State, backend: Backend) -> list[LayerCopy]:
    layers = [layer for layer in state.layers if not isinstance(layer, AttentionState)]
    return [(copied(layer.conv, backend), copied(layer.memory, backend)) for layer in layers]
