"""Packing experts: each is read, quantized straight into its record, and handed on in order.

A record that the checkpoint already holds in the wanted format is read in place and never recoded. Memory is bounded
by a fixed number of slots, whatever the number of experts.
"""

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from ..layout.matrix import expert_matrices
from ..layout.record import RecordLayout
from ..manifests.errors import CorruptInputError
from ..quantize.affine import AffineMatrix
from ..quantize.calibration import InputStatistics
from ..quantize.feedback import HessianError
from ..quantize.grids import Matrix
from ..quantize.methods import NonFiniteWeightError, quantize_into
from .calibration.statistics import LayerStatistics
from .checkpoint import Checkpoint
from .finite import not_finite, require_finite
from .matrices import as_quantized
from .parallel import in_flight, in_order
from .recipe import passes_through
from .tensors import LayerExperts, Scratch, Weights


@dataclass(frozen=True)
class Taken:
    """The method that was asked for a matrix, and the one whose result was taken: gptq may keep a simpler one's."""

    asked: str
    kept: str


class Slot:
    """One record being made: its bytes, the three matrices as views of them, and room for what is read.

    `taken` has an entry for each matrix that was quantized anew.
    """

    def __init__(self, layout: RecordLayout) -> None:
        self.record = np.zeros(layout.stride, np.uint8)  # what no component covers stays zero: the padding
        self.matrices = {name: as_quantized(stored) for name, stored in expert_matrices(self.record, layout).items()}
        self.scratch = Scratch()
        self.taken: list[Taken] = []


class ExpertPacker:
    """Makes the records of one layout on `jobs` threads; its slots serve layer after layer.

    `methods` names the method of each projection.
    """

    def __init__(self, checkpoint: Checkpoint, layout: RecordLayout, methods: Mapping[str, str], jobs: int) -> None:
        self.layout = layout
        self.methods = methods
        self._checkpoint = checkpoint
        self._jobs = jobs
        self._slots = [Slot(layout) for _ in range(in_flight(jobs))]

    def packed(
        self, experts: LayerExperts, wanted: Iterable[int], statistics: LayerStatistics | None = None
    ) -> Generator[Slot, None, None]:
        """The records of the `wanted` experts of a layer, in that order; each is valid until the next is asked for.

        `statistics` are what its methods go by, if they need any. Raises CorruptInputError naming tensor and expert if
        a weight is not finite, or if second moments are none.
        """
        free: SimpleQueue[Slot] = SimpleQueue()
        for slot in self._slots:
            free.put(slot)

        def pack(expert: int) -> Slot:
            return self._pack(experts, expert, statistics, free.get())

        for slot in in_order(pack, wanted, jobs=self._jobs):
            yield slot
            free.put(slot)

    def _pack(self, experts: LayerExperts, expert: int, statistics: LayerStatistics | None, slot: Slot) -> Slot:
        encodings = experts.encodings
        into = {
            name: matrix
            for name, matrix in slot.matrices.items()
            if isinstance(matrix, AffineMatrix) and passes_through(encodings[name], matrix.format)
        }
        recoded = {name: method for name, method in self.methods.items() if name not in into}
        inputs = statistics.of(expert, recoded) if statistics is not None else {}
        slot.taken = []
        for name, weights in experts.read(expert, slot.scratch, into).items():
            what = self._name(experts, expert, name)
            if name in into:
                require_finite(into[name].scales, what)
                require_finite(into[name].biases, what)
            else:
                found = self._quantize(weights, self.methods[name], slot.matrices[name], inputs.get(name), what)
                slot.taken.append(Taken(self.methods[name], found))
        return slot

    def _quantize(self, weights: Weights, method: str, out: Matrix, inputs: InputStatistics | None, what: str) -> str:
        try:
            return quantize_into(out, weights, method, inputs)
        except NonFiniteWeightError as error:
            raise not_finite(f"{what}, row {error.row},") from None
        except HessianError as error:
            raise CorruptInputError(f"{what}: {error}; calibrate again") from None

    def _name(self, experts: LayerExperts, expert: int, projection: str) -> str:
        stored = experts.stored(expert, projection)
        return f"{self._checkpoint.home(stored)}: tensor {stored!r}, expert {expert}, {projection}"
