"""A checkpoint as a source of weights for a forward pass, in any dialect that can be packed, and never quantized.

Trunk tensors are what a pack with the trunk format "source" would store; experts are the checkpoint's own floats or
codes, read one at a time. Made for runtime's `Source`, which it fits without knowing it.
"""

from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue

import numpy as np

from ..layout.formats import AffineFormat
from ..layout.matrix import Array, ExpertMatrices, StoredMatrix
from ..manifests.schema import Model
from ..quantize.affine import AffineMatrix
from .checkpoint import Checkpoint
from .parallel import in_flight, in_order
from .plan import understand
from .recipe import Recipe
from .tensors import Scratch, Weights
from .trunk import plan_item, trunk_blocks

READERS = 2  # threads that read experts ahead, each waiting for the disk most of the time


class Reference:
    """An opened checkpoint, which must stay open. Raises as `understand` does."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.where = str(checkpoint.origin.directory)
        self._source = understand(checkpoint)
        self.model: Model = self._source.model
        self._items = [plan_item(entry, Recipe(trunk_format="source")) for entry in self._source.trunk]
        self._homes = {spec.name: item for item in self._items for spec in item.specs}

    @property
    def formats(self) -> Mapping[str, AffineFormat]:
        """The format of every quantized trunk matrix, by its stem."""
        return {item.entry.tensor.stem: item.format for item in self._items if item.format is not None}

    def tensor(self, name: str) -> Array | None:
        """A trunk tensor as a pack would store it, or None. Raises CorruptInputError if a float is not finite."""
        if name not in self._homes:
            return None
        blocks = trunk_blocks([self._homes[name]], self.checkpoint, 1)
        return np.concatenate(list(blocks[name]))

    def experts(self, layer: int, experts: Sequence[int]) -> Iterator[tuple[int, ExpertMatrices]]:
        """Yield (expert, its matrices) in the order of `experts`; the matrices are valid until the next are asked for.

        The following experts are read meanwhile. Raises StorageError if a read fails.
        """
        stored = self._source.experts[layer]
        free: SimpleQueue[Scratch] = SimpleQueue()
        for _ in range(in_flight(READERS)):
            free.put(Scratch())

        def read(expert: int) -> tuple[int, ExpertMatrices, Scratch]:
            scratch = free.get()
            matrices = stored.read(expert, scratch, {})
            return expert, {name: _stored(weights) for name, weights in matrices.items()}, scratch

        for expert, matrices, scratch in in_order(read, experts, jobs=READERS):
            yield expert, matrices
            free.put(scratch)


def _stored(weights: Weights) -> StoredMatrix:
    if isinstance(weights, AffineMatrix):
        return StoredMatrix(weights.codes, weights.scales, weights.biases, weights.format)
    return StoredMatrix(weights)
