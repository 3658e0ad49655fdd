"""Sensitivities: how much the output suffers when the experts of one layer lose precision in one projection only.

Of each (layer, projection) a variant of the stream goes its own way from that layer on. All variants travel together
behind the unchanged stream, so the whole measurement reads each layer's experts once for the variants that come from
before and four times more where variants begin; it computes as much as 3 L passes of half the layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..layout.matrix import ExpertMatrices, StoredMatrix
from ..layout.record import PROJECTIONS
from ..manifests.errors import UsageError
from ..manifests.progress import Progress
from ..manifests.schema import Projection
from .backends.base import Backend, Ids
from .corpus import Corpus, Room, Stream
from .quality.divergence import Doubles, blocks, compare
from .quality.noise import dense_rows
from .quality.summary import Estimate, estimate
from .quality.windows import Windows
from .source import Replaced, Source
from .sweep import Sweep

ERROR_ROWS = 64  # of every replaced matrix, spread evenly: they tell its relative squared error well enough

Coarsen = Callable[[StoredMatrix], StoredMatrix]


@dataclass(frozen=True)
class Sensitivity:
    """What coarse experts of one layer's projection did: KL at the output, mean and standard error, in nats.

    `error` is the relative squared error of the weights that were replaced.
    """

    divergence: Estimate
    error: float

    @property
    def per_error(self) -> float:
        """KL per unit of relative squared error; 0 for weights that the coarse format holds exactly."""
        return self.divergence.mean / self.error if self.error else 0.0


Sensitivities = tuple[dict[Projection, Sensitivity], ...]  # of each layer, by projection


def measure(
    source: Source, windows: Windows, coarsen: Coarsen, backend: Backend, *, room: Room, progress: Progress
) -> Sensitivities:
    """Measure every layer's projections on the scored positions of `windows`.

    `coarsen` gives a matrix the precision whose effect is measured; it is asked for each visited expert, once.
    Memory, or disk beyond the room's: two arrays of 3 x layers x tokens hidden states. Raises UsageError if the text is
    too short to score.
    """
    if not len(windows.rows()):
        raise UsageError("the text is too short to measure sensitivities on; give a longer one")
    return _Measurement(source, windows, coarsen, backend, room).run(progress)


class _Measurement:
    """The unchanged stream, and all variants that have begun, side by side."""

    def __init__(self, source: Source, windows: Windows, coarsen: Coarsen, backend: Backend, room: Room) -> None:
        self._source, self._windows, self._coarsen, self._backend, self._room = source, windows, coarsen, backend, room
        self._sweep = Sweep(source, backend)
        self._tokens = len(windows.corpus)
        self._layers = source.model.num_layers
        self._rows = room.array(len(PROJECTIONS) * self._layers * self._tokens, source.model.hidden_size)
        self._errors: list[float] = []

    def run(self, progress: Progress) -> Sensitivities:
        """Take everything through all layers, then compare."""
        unchanged = self._sweep.embed(self._windows.corpus, self._room)
        with progress.task("measuring sensitivities", self._layers, unit="layers") as task:
            for layer in range(self._layers):
                self._advance_variants(layer)
                for projection in PROJECTIONS:
                    self._begin(layer, projection, unchanged)
                self._sweep.advance(layer, unchanged)
                task.advance(1)
        found, step = self._compared(unchanged), len(PROJECTIONS)
        return tuple(
            dict(zip(PROJECTIONS, found[first : first + step], strict=True)) for first in range(0, len(found), step)
        )

    def _advance_variants(self, layer: int) -> None:
        if begun := len(self._errors):
            rows = self._rows[: begun * self._tokens]
            self._sweep.advance(layer, Stream(_repeated(self._windows.corpus, begun), rows, self._room))

    def _begin(self, layer: int, projection: str, unchanged: Stream) -> None:
        """A variant goes through the layer where it differs."""
        variant = self._variant(len(self._errors))
        variant.rows[:] = unchanged.rows
        coarse = _Coarse(projection, self._coarsen, self._backend)
        Sweep(Replaced(self._source, coarse.replace), self._backend).advance(layer, variant)
        self._errors.append(coarse.error)

    def _variant(self, index: int) -> Stream:
        rows = self._rows[index * self._tokens : (index + 1) * self._tokens]
        return Stream(self._windows.corpus, rows, self._room)

    def _compared(self, unchanged: Stream) -> list[Sensitivity]:
        """All variants against the unchanged stream, whose logits are made once, a block of positions at a time."""
        rows, clusters = self._windows.rows(), self._windows.clusters()
        parts = [self._divergences(unchanged, rows[part]) for part in blocks(len(rows), self._source.model.vocab_size)]
        return [
            Sensitivity(estimate(np.concatenate(variant), clusters), error)
            for variant, error in zip(zip(*parts, strict=True), self._errors, strict=True)
        ]

    def _divergences(self, unchanged: Stream, rows: Ids) -> list[Doubles]:
        """KL of every variant at some positions."""
        wanted, targets = self._sweep.logits_of(unchanged.rows[rows]), self._windows.corpus.tokens[rows + 1]
        variants = (self._sweep.logits_of(self._variant(index).rows[rows]) for index in range(len(self._errors)))
        return [compare(wanted, logits, targets).divergence for logits in variants]


class _Coarse:
    """Replaces one projection of every expert, and adds up how far that is from what was there."""

    def __init__(self, projection: str, coarsen: Coarsen, backend: Backend) -> None:
        self._projection, self._coarsen, self._backend = projection, coarsen, backend
        self._squared_error = self._power = 0.0

    def replace(self, layer: int, expert: int, matrices: ExpertMatrices) -> ExpertMatrices:
        """The matrices with one of them coarse."""
        before = matrices[self._projection]
        after = self._coarsen(before)
        wanted = self._sampled(before)
        self._squared_error += float(np.square(wanted - self._sampled(after)).sum())
        self._power += float(np.square(wanted).sum())
        return {**matrices, self._projection: after}

    @property
    def error(self) -> float:
        """Relative squared error of all that was replaced; 0 if that was nothing."""
        return self._squared_error / self._power if self._power else 0.0

    def _sampled(self, matrix: StoredMatrix) -> Doubles:
        rows = np.linspace(0, matrix.shape[0] - 1, min(ERROR_ROWS, matrix.shape[0])).astype(np.int32)
        return dense_rows(matrix, rows, self._backend)


def _repeated(corpus: Corpus, times: int) -> Corpus:
    """The same sequences several times over."""
    starts = np.asarray(corpus.starts)
    shifted = (starts[:-1] + len(corpus) * np.arange(times)[:, None]).reshape(-1).tolist()
    return Corpus(np.tile(corpus.tokens, times), (*shifted, len(corpus) * times))
