"""The layer-streamed pass: bit for bit the engine on a pack, transformers on a checkpoint, whatever is cut where."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import NARROW, ODD, TINY, CheckpointMaker, Shape, Variant, random_model
from oracle import expert_matrix
from packs import build_pack, with_random_experts

from moepack.convert.checkpoint import Checkpoint
from moepack.convert.reference import Reference
from moepack.layout.formats import parse
from moepack.layout.matrix import ExpertMatrices
from moepack.layout.reader import Pack
from moepack.manifests.errors import CorruptInputError, MismatchError, StorageError, UsageError
from moepack.runtime.backends.cpu import CpuBackend
from moepack.runtime.corpus import Corpus, Room, Stream
from moepack.runtime.engine import Engine, EngineOptions
from moepack.runtime.source import ExpertsFrom, PackSource, Replaced, Source
from moepack.runtime.state import State
from moepack.runtime.sweep import IN_MEMORY, Sweep

CPU = CpuBackend(2, exact=True)
TIED = Shape(tied=True, interval=2, seed=3)
PACKS = {
    "tiny": (Variant(TINY), "affine2-g64", "source"),
    "odd": (Variant(ODD), "affine4-g64", "affine8-g64"),
    "narrow": (Variant(NARROW, dtype="float16"), "affine2-g32", "source"),
    "tied": (Variant(TIED, dtype="float32"), "affine3-g32", "affine4-g64"),
}
LENGTHS = (37, 1, 150, 8, 64)
ORACLE_TOLERANCE = 1e-3  # as tests/runtime/test_oracle.py


@pytest.fixture(scope="module")
def packs(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("swept")
    for name, (variant, expert_format, trunk) in PACKS.items():
        build_pack(make_checkpoint(variant), folder / name, expert_format=expert_format, trunk=trunk)
    return {name: folder / name for name in PACKS}


@pytest.fixture
def source(packs: dict[str, Path]) -> Iterator[PackSource]:
    with Pack.open(packs["tiny"]) as pack, PackSource(pack) as opened:
        yield opened


def corpus_of(vocab_size: int, lengths: Sequence[int] = LENGTHS) -> Corpus:
    random = np.random.default_rng(len(lengths))
    return Corpus.of([random.integers(0, vocab_size, length).tolist() for length in lengths])


def by_engine(path: Path, corpus: Corpus, k: int | None = None) -> np.ndarray:
    with Engine.open(path, EngineOptions(threads=2, experts_per_token=k, exact=True)) as engine:
        rows = [engine.new_session().extend_all(corpus.tokens[first:last].tolist()) for first, last in corpus.bounds()]
    return np.concatenate(rows)


def swept(source: Source, corpus: Corpus, room: Room = IN_MEMORY, **options: int) -> np.ndarray:
    sweep = Sweep(source, CPU, **options)
    return sweep.logits(sweep.run(sweep.embed(corpus, room)), slice(None))


@pytest.mark.parametrize("case", PACKS)
@pytest.mark.parametrize("cut", [{}, {"chunk": 7, "block": 10}, {"chunk": 64, "block": 1}], ids=str)
def test_a_pack_swept_is_the_engine_bit_for_bit(packs: dict[str, Path], case: str, cut: dict[str, int]) -> None:
    with Pack.open(packs[case]) as pack, PackSource(pack) as source:
        corpus = corpus_of(pack.model.vocab_size)
        assert np.array_equal(swept(source, corpus, **cut), by_engine(packs[case], corpus))


def test_a_pack_of_grid_formats_swept_is_the_engine_too(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    packing = build_pack(make_checkpoint(), tmp_path / "affine")
    formats = {"gate": "affine2-g16s", "up": "book2-g8", "down": "affine3-g32s"}
    with_random_experts(
        tmp_path / "affine", packing.plan, tmp_path / "grids", {name: parse(text) for name, text in formats.items()}
    )
    corpus = corpus_of(TINY.vocab)
    with Pack.open(tmp_path / "grids") as pack, PackSource(pack) as source:
        assert np.array_equal(swept(source, corpus), by_engine(tmp_path / "grids", corpus))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_fewer_experts_per_token_are_the_engines_too(packs: dict[str, Path], source: PackSource, k: int) -> None:
    corpus = corpus_of(source.model.vocab_size)
    assert np.array_equal(swept(source, corpus, experts_per_token=k), by_engine(packs["tiny"], corpus, k))


@pytest.mark.parametrize("memory", [0, 100_000])
def test_spilled_hidden_states_change_no_bit(source: PackSource, tmp_path: Path, memory: int) -> None:
    corpus = corpus_of(source.model.vocab_size)
    assert len(corpus) * source.model.hidden_size * 4 > memory
    assert np.array_equal(swept(source, corpus, Room(memory, tmp_path), block=50), swept(source, corpus))
    assert not list(tmp_path.iterdir())


def test_room_spills_above_its_bound_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spilled: list[int] = []

    def reserve(descriptor: int, size: int) -> None:
        spilled.append(size)
        os.truncate(descriptor, size)

    monkeypatch.setattr("moepack.runtime.corpus._reserve", reserve)
    assert not Room(400, tmp_path).array(10, 10).any()
    assert spilled == []
    array = Room(399, tmp_path).array(10, 10)
    array[3] = 7
    assert spilled == [400]
    assert array.sum() == 70


def test_a_folder_without_room_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("moepack.runtime.corpus._reserve", full)
    with pytest.raises(StorageError, match=r"has no room for 4 bytes of hidden states \(No space left on device\)"):
        Room(0, tmp_path).array(1, 1)


@pytest.mark.parametrize(
    "variant",
    [Variant(TINY), Variant(ODD, fused=True), Variant(NARROW, dtype="float16"), Variant(TIED, dtype="float32")],
    ids=["bf16", "fused", "f16", "f32 tied"],
)
def test_a_checkpoint_swept_agrees_with_transformers(make_checkpoint: CheckpointMaker, variant: Variant) -> None:
    corpus = corpus_of(variant.shape.vocab)
    with Checkpoint.open(str(make_checkpoint(variant))) as checkpoint:
        ours = swept(Reference(checkpoint), corpus, chunk=32)
    assert np.abs(ours - by_transformers(variant, corpus)).max() <= ORACLE_TOLERANCE


def by_transformers(variant: Variant, corpus: Corpus) -> np.ndarray:
    model = random_model(variant.shape, variant.dtype).float()
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    with torch.no_grad():
        sequences = [torch.tensor([corpus.tokens[first:last].tolist()]) for first, last in corpus.bounds()]
        return np.concatenate([model(tokens, use_cache=False).logits[0].numpy() for tokens in sequences])


def test_an_mlx_checkpoint_swept_is_its_pass_through_pack_swept(
    make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    path = make_checkpoint(Variant(TINY, dialect="mlx", bits=4))
    build_pack(path, tmp_path / "pack", expert_format="affine4-g64")
    corpus = corpus_of(TINY.vocab)
    with Pack.open(tmp_path / "pack") as pack, PackSource(pack) as source, Checkpoint.open(str(path)) as checkpoint:
        reference = Reference(checkpoint)
        assert reference.formats == source.formats
        assert {format_.bits for format_ in reference.formats.values()} == {4, 8}
        assert np.array_equal(swept(reference, corpus), swept(source, corpus))


class Counting:
    """A source that remembers what was read."""

    def __init__(self, source: Source) -> None:
        self.model, self.where, self.formats = source.model, source.where, source.formats
        self._source = source
        self.tensors: list[str] = []
        self.read: list[tuple[int, int]] = []

    def tensor(self, name: str) -> np.ndarray | None:
        self.tensors.append(name)
        return self._source.tensor(name)

    def experts(self, layer: int, experts: Sequence[int]) -> Iterator[tuple[int, ExpertMatrices]]:
        for expert, matrices in self._source.experts(layer, experts):
            self.read.append((layer, expert))
            yield expert, matrices


def test_everything_is_read_once_per_pass(source: PackSource) -> None:
    counting = Counting(source)
    swept(counting, corpus_of(source.model.vocab_size, (200, 100)), chunk=16, block=16)
    assert len(counting.tensors) == len(set(counting.tensors)) == len(source.pack.trunk.entries)
    experts = [(layer, expert) for layer in range(source.model.num_layers) for expert in range(8)]
    assert counting.read == experts


class Recorder:
    """An observer that keeps all it sees."""

    def __init__(self) -> None:
        self.layers: list[int] = []
        self.blocks: list[np.ndarray] = []  # of the current layer
        self.rows: list[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]] = []

    def layer(self, layer: int) -> None:
        self.layers.append(layer)
        self.blocks.clear()

    def inputs(self, layer: int, first: int, inputs: np.ndarray) -> None:
        assert layer == self.layers[-1]
        assert first == sum(map(len, self.blocks))
        self.blocks.append(inputs.copy())

    def expert(
        self, layer: int, expert: int, tokens: np.ndarray, inputs: np.ndarray, inner: np.ndarray, shares: np.ndarray
    ) -> None:
        assert (np.diff(tokens) > 0).all()
        assert np.array_equal(inputs, np.concatenate(self.blocks)[tokens])
        self.rows.append((layer, expert, inputs.copy(), inner.copy(), shares.copy()))


def test_observers_see_every_routed_row(source: PackSource) -> None:
    corpus, model = corpus_of(source.model.vocab_size), source.model
    seen = Recorder()
    sweep = Sweep(source, CPU, block=20)
    plain = swept(source, corpus)
    assert np.array_equal(sweep.logits(sweep.run(sweep.embed(corpus), observer=seen), slice(None)), plain)
    assert seen.layers == list(range(model.num_layers))
    for layer in range(model.num_layers):
        rows = [row for row in seen.rows if row[0] == layer]
        assert sum(len(shares) for *_, shares in rows) == len(corpus) * model.num_experts_per_tok
        assert sum(shares.sum(dtype=float) for *_, shares in rows) == pytest.approx(len(corpus), rel=1e-6)
        assert max(len(inputs) for _, _, inputs, _, _ in rows) <= 20
        assert [expert for _, expert, *_ in rows] == sorted(expert for _, expert, *_ in rows)
    check_inner(source, seen)


def check_inner(source: PackSource, seen: Recorder) -> None:
    """What down sees is silu(gate x) * up x of what gate and up see, in float64."""
    layer, expert, inputs, inner, _ = max(seen.rows, key=lambda row: len(row[4]))
    record, layout = source.pack.read_record(layer, expert), source.pack.records[layer]
    gate, up = (inputs.astype(float) @ expert_matrix(record, layout, name).astype(float).T for name in ("gate", "up"))
    assert np.allclose(inner, gate / (1 + np.exp(-gate)) * up, atol=1e-5)


def test_observed_rows_are_those_of_each_token_in_order(source: PackSource) -> None:
    """One expert per token: the rows of all experts, put back in the tokens' order, are all normed tokens."""
    corpus, seen = corpus_of(source.model.vocab_size, (30, 20)), Recorder()
    sweep = Sweep(source, CPU, experts_per_token=1)
    stream = sweep.embed(corpus)
    sweep.advance(0, stream, observer=seen)
    inputs = np.concatenate([row[2] for row in seen.rows])
    assert len(inputs) == len(corpus) == len({row.tobytes() for row in inputs})
    again = Recorder()
    sweep.advance(0, sweep.embed(Corpus.of([corpus.tokens[:30].tolist()])), observer=again)
    for _, expert, rows, _, _ in again.rows:
        whole = next(row[2] for row in seen.rows if row[1] == expert)
        assert np.array_equal(whole[: len(rows)], rows)


def test_a_pass_can_start_at_any_layer(source: PackSource) -> None:
    corpus = corpus_of(source.model.vocab_size)
    sweep = Sweep(source, CPU)
    stream = sweep.embed(corpus)
    kept: list[Stream] = []
    for layer in range(source.model.num_layers):
        kept.append(stream.copy())
        sweep.advance(layer, stream)
    wanted = sweep.logits(stream, slice(None))
    for layer, start in enumerate(kept):
        assert np.array_equal(sweep.logits(sweep.run(start, layer), slice(None)), wanted)
    assert np.array_equal(sweep.logits(stream, slice(10, 13)), wanted[10:13])


def test_states_continue_where_a_pass_ended(packs: dict[str, Path], source: PackSource) -> None:
    """Prompts of unequal length, then token by token in lockstep: the engine's logits."""
    corpus = corpus_of(source.model.vocab_size, (20, 33, 7))
    sequences = [corpus.tokens[first:last].tolist() for first, last in corpus.bounds()]
    sweep = Sweep(source, CPU)
    states = [State(source.model, CPU, 64) for _ in sequences]
    cuts = [
        [sequence[:-3] for sequence in sequences],
        *([[sequence[-left]] for sequence in sequences] for left in (3, 2, 1)),
    ]
    for cut in cuts:
        stream = sweep.embed(Corpus.of(cut))
        for layer in range(source.model.num_layers):
            sweep.advance(layer, stream, states=states)
        for state, part in zip(states, cut, strict=True):
            state.position += len(part)
    wanted = by_engine(packs["tiny"], corpus)[[last - 1 for _, last in corpus.bounds()]]
    assert np.array_equal(sweep.logits(stream, slice(None)), wanted)


def test_experts_can_be_replaced_and_come_from_another_source(packs: dict[str, Path], source: PackSource) -> None:
    corpus = corpus_of(source.model.vocab_size)
    same = Replaced(source, lambda layer, expert, matrices: matrices)
    assert np.array_equal(swept(same, corpus), swept(source, corpus))
    swapped = Replaced(source, swap_gate_and_up)
    assert np.abs(swept(swapped, corpus) - swept(source, corpus)).max() > 0.1
    assert np.array_equal(swept(ExpertsFrom(source, swapped), corpus), swept(swapped, corpus))


def swap_gate_and_up(layer: int, expert: int, matrices: ExpertMatrices) -> ExpertMatrices:
    return {"gate": matrices["up"], "up": matrices["gate"], "down": matrices["down"]}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda source: Sweep(source, CPU, experts_per_token=4), "4 experts per token are outside the model's 1 to 3"),
        (lambda source: Sweep(source, CPU, experts_per_token=0), "outside the model's 1 to 3"),
        (lambda source: Sweep(source, CPU).embed(Corpus.of([[1, 512]])), "token 512 is outside the model's vocabulary"),
        (lambda source: Sweep(source, CPU).embed(Corpus.of([[-1]])), "token -1 is outside"),
        (lambda source: Corpus.of([]), "no tokens"),
        (lambda source: Corpus.of([[1], []]), "no tokens"),
    ],
)
def test_what_cannot_be_swept(source: PackSource, call: Callable[[Source], object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        call(source)


def test_activations_that_are_not_finite_are_refused(source: PackSource) -> None:
    def burst(layer: int, expert: int, matrices: ExpertMatrices) -> ExpertMatrices:
        down = matrices["down"]
        assert down.scales is not None
        return {**matrices, "down": replace(down, scales=np.full_like(down.scales, np.inf))} if layer == 2 else matrices

    with pytest.raises(CorruptInputError, match="activations after layer 2 are not finite"):
        swept(Replaced(source, burst), corpus_of(source.model.vocab_size))


def test_a_damaged_trunk_is_never_used(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    build_pack(make_checkpoint(), tmp_path / "pack")
    path = tmp_path / "pack" / "trunk.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.chmod(0o600)
    path.write_bytes(content)
    with Pack.open(tmp_path / "pack") as pack, pytest.raises(MismatchError, match=r"trunk\.safetensors is damaged"):
        PackSource(pack)
