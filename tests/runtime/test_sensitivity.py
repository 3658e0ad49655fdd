"""Sensitivities measured in one pass against as many whole passes as there are variants, and transformers' weights."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from checkpoints import TINY, CheckpointMaker, Variant

from moepack.convert.checkpoint import Checkpoint
from moepack.convert.coarse import coarsened, coarsest
from moepack.convert.reference import Reference
from moepack.layout.formats import parse
from moepack.layout.matrix import ExpertMatrices, StoredMatrix
from moepack.layout.record import PROJECTIONS
from moepack.manifests.errors import CorruptInputError, UsageError
from moepack.manifests.progress import Silent
from moepack.runtime import sensitivity
from moepack.runtime.backends.cpu import CpuBackend
from moepack.runtime.corpus import Corpus, Room
from moepack.runtime.quality.divergence import log_softmax
from moepack.runtime.quality.windows import Windows
from moepack.runtime.source import Replaced, Source
from moepack.runtime.sweep import Sweep

CPU = CpuBackend(2, exact=True)
FORMAT = parse("affine2-g64")
SHAPE = replace(TINY, vocab=300)
VARIANTS = {"floats": Variant(SHAPE), "codes": Variant(SHAPE, dialect="mlx", bits=4)}
LENGTHS = (40, 23)


@pytest.fixture(params=VARIANTS)
def reference(request: pytest.FixtureRequest, make_checkpoint: CheckpointMaker) -> Iterator[Reference]:
    with Checkpoint.open(str(make_checkpoint(VARIANTS[request.param]))) as checkpoint:
        yield Reference(checkpoint)


def windows_of(vocab_size: int, lengths: Sequence[int] = LENGTHS) -> Windows:
    random = np.random.default_rng(3)
    corpus = Corpus.of([random.integers(0, vocab_size, length).tolist() for length in lengths])
    return Windows(corpus, tuple(range(len(lengths))), 0, "")


def coarse(matrix: StoredMatrix) -> StoredMatrix:
    return coarsened(matrix, FORMAT)


class Counted:
    """A source that counts how often each layer's experts are asked for."""

    def __init__(self, source: Source) -> None:
        self.model, self.where, self.formats, self.tensor = source.model, source.where, source.formats, source.tensor
        self.asked = [0] * source.model.num_layers
        self._source = source

    def experts(self, layer: int, experts: Sequence[int]) -> Iterator[tuple[int, ExpertMatrices]]:
        self.asked[layer] += 1
        return self._source.experts(layer, experts)


def dense(matrix: StoredMatrix) -> np.ndarray:
    rows = np.arange(matrix.shape[0], dtype=np.int32)
    return CPU.to_host(CPU.embed(CPU.matrix(matrix), rows)).astype(np.float64)


def by_whole_passes(source: Source, windows: Windows, layer: int, projection: str) -> tuple[float, float]:
    """KL and relative squared error of one variant, from embedding to logits, in plain numpy."""
    sums = np.zeros(2)

    def replaced(at: int, expert: int, matrices: ExpertMatrices) -> ExpertMatrices:
        if at != layer:
            return matrices
        before, after = matrices[projection], coarse(matrices[projection])
        sums[:] += ((dense(before) - dense(after)) ** 2).sum(), (dense(before) ** 2).sum()
        return {**matrices, projection: after}

    rows, logs = windows.rows(), []
    for one in (source, Replaced(source, replaced)):
        sweep = Sweep(one, CPU)
        stream = sweep.run(sweep.embed(windows.corpus))
        logs.append(log_softmax(sweep.logits_of(stream.rows[rows])))
    divergence = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(1).mean()
    return float(divergence), float(sums[0] / sums[1])


@pytest.mark.parametrize("room", [Room(), Room(memory=1)], ids=["memory", "disk"])
def test_one_pass_measures_what_whole_passes_do(
    room: Room, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "ERROR_ROWS", 10**6)
    windows, source = windows_of(reference.model.vocab_size), Counted(reference)
    found = sensitivity.measure(source, windows, coarse, CPU, room=room, progress=Silent())
    assert source.asked == [4, 5, 5, 5]
    for layer, projection in product(range(4), PROJECTIONS):
        divergence, error = by_whole_passes(reference, windows, layer, projection)
        one = found[layer][projection]
        assert one.divergence.mean == pytest.approx(divergence, rel=1e-9)
        assert one.error == pytest.approx(error, rel=1e-6)
        assert one.per_error == pytest.approx(divergence / error, rel=1e-6)
        assert 0.01 < one.error < 0.4
        assert one.divergence.mean > 0


def test_a_sample_of_rows_tells_the_error(reference: Reference) -> None:
    windows = windows_of(reference.model.vocab_size)
    found = sensitivity.measure(reference, windows, coarse, CPU, room=Room(), progress=Silent())
    _, error = by_whole_passes(reference, windows, 1, "down")
    assert found[1]["down"].error == pytest.approx(error, rel=0.1)


def test_what_is_exact_has_no_sensitivity(reference: Reference) -> None:
    windows = windows_of(reference.model.vocab_size)
    found = sensitivity.measure(reference, windows, lambda matrix: matrix, CPU, room=Room(), progress=Silent())
    assert {(one.divergence.mean, one.error, one.per_error) for layer in found for one in layer.values()} == {(0, 0, 0)}


def test_a_text_too_short_is_refused(reference: Reference) -> None:
    with pytest.raises(UsageError, match="too short"):
        sensitivity.measure(reference, windows_of(100, (1,)), coarse, CPU, room=Room(), progress=Silent())


def test_coarse_is_the_fewest_bits_that_fit(make_checkpoint: CheckpointMaker) -> None:
    with Checkpoint.open(str(make_checkpoint(Variant(SHAPE)))) as checkpoint:
        assert coarsest(Reference(checkpoint).model).bits == 2


def test_a_weight_that_is_no_number_is_refused() -> None:
    with pytest.raises(CorruptInputError, match="NaN"):
        coarsened(StoredMatrix(np.full((2, 64), np.nan, np.float32)), FORMAT)
