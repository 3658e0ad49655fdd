"""Whole models scored: against transformers, against the engine, against plain numpy."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import ODD, TINY, CheckpointMaker, Variant, random_model
from oracle import expert_matrix, reference_model
from packs import build_pack

from moepack.convert.checkpoint import Checkpoint
from moepack.convert.reference import Reference
from moepack.layout.reader import Pack
from moepack.layout.record import PROJECTIONS
from moepack.manifests.errors import UsageError
from moepack.manifests.progress import Silent
from moepack.runtime.backends.cpu import CpuBackend
from moepack.runtime.corpus import Corpus, Room
from moepack.runtime.engine import Engine, EngineOptions
from moepack.runtime.generate import Generation, Limits
from moepack.runtime.language import Language
from moepack.runtime.quality import divergence, greedy
from moepack.runtime.quality.layers import layer_divergences
from moepack.runtime.quality.noise import Noise, measure
from moepack.runtime.quality.score import Passed, compare_streams, passed
from moepack.runtime.quality.summary import Summary
from moepack.runtime.quality.vocabulary import require_same_model
from moepack.runtime.quality.windows import Windows
from moepack.runtime.sampling import Sampler, Sampling
from moepack.runtime.source import ExpertsFrom, PackSource
from moepack.runtime.sweep import Sweep

CPU = CpuBackend(2, exact=True)
ROOM = Room()
LAYERS = TINY.layers


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Its threads spin; see test_oracle.py."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def two_bits(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quality") / "two-bits"
    build_pack(make_checkpoint(), path)
    return path


@pytest.fixture
def pack(two_bits: Path) -> Iterator[PackSource]:
    with Pack.open(two_bits) as opened, PackSource(opened) as source:
        yield source


@pytest.fixture
def reference(make_checkpoint: CheckpointMaker) -> Iterator[Reference]:
    with Checkpoint.open(str(make_checkpoint())) as checkpoint:
        yield Reference(checkpoint)


def windows_of(lengths: tuple[int, ...] = (60, 2, 80), scored_from: int = 0) -> Windows:
    random = np.random.default_rng(5)
    corpus = Corpus.of([random.integers(0, TINY.vocab, length).tolist() for length in lengths])
    return Windows(corpus, tuple(range(len(lengths))), scored_from, "")


def scored(
    reference: Reference | PackSource, other: Reference | PackSource, windows: Windows, k: int = 3
) -> divergence.Positions:
    with Silent().task("", 0) as task:
        first = passed(Sweep(reference, CPU), windows, ROOM, task)
        second = passed(Sweep(other, CPU, experts_per_token=k), windows, ROOM, task)
    return compare_streams(first, second, windows)


def by_transformers(model: torch.nn.Module, windows: Windows) -> torch.Tensor:
    """Log probabilities, float64, of every row but each window's last."""
    with torch.no_grad():
        parts = [
            model(torch.tensor([windows.corpus.tokens[first:last].tolist()]), use_cache=False).logits[0, :-1]
            for first, last in windows.corpus.bounds()
        ]
    return torch.cat(parts).double().log_softmax(-1)


def eager(model: torch.nn.Module, k: int = 3) -> torch.nn.Module:
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    for layer in model.model.layers:
        layer.mlp.gate.top_k = k
    return model


@pytest.mark.parametrize("k", [3, 1])
def test_the_divergence_of_a_pack_is_that_of_its_weights_in_transformers(
    reference: Reference, pack: PackSource, two_bits: Path, k: int
) -> None:
    windows = windows_of()
    found = scored(reference, pack, windows, k)
    log_p = by_transformers(eager(random_model(TINY, "bfloat16").float()), windows)
    log_q = by_transformers(eager(reference_model(two_bits), k), windows)
    wanted = (log_p.exp() * (log_p - log_q)).sum(-1).numpy()
    assert wanted.mean() > 0.01
    assert np.allclose(found.divergence, wanted, rtol=1e-3, atol=1e-5)
    targets = torch.from_numpy(windows.corpus.tokens[windows.rows() + 1]).long()
    assert np.allclose(found.loss, -log_q.gather(1, targets[:, None])[:, 0].numpy(), atol=1e-3)
    assert np.allclose(found.reference_loss, -log_p.gather(1, targets[:, None])[:, 0].numpy(), atol=1e-3)
    assert (found.top == log_q.argmax(-1).numpy()).mean() > 0.99


def test_a_model_does_not_differ_from_itself(pack: PackSource) -> None:
    windows = windows_of()
    same = Summary.of(scored(pack, pack, windows), windows.clusters())
    assert (same.divergence.mean, same.largest, same.agreement.mean, same.ratio) == (0, 0, 1, 1)
    assert scored(pack, pack, windows, k=1).divergence.mean() > 0.01


def test_scoring_from_the_middle_takes_part_of_the_positions(reference: Reference, pack: PackSource) -> None:
    whole, later = (scored(reference, pack, windows_of((60, 80), first)).divergence for first in (0, 30))
    assert np.array_equal(later, np.concatenate([whole[30:59], whole[89:]]))


def test_blocks_of_logits_change_no_bit(
    reference: Reference, pack: PackSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scored(reference, pack, windows_of()).divergence
    monkeypatch.setattr(divergence, "LOGITS_BYTES", 7 * 8 * TINY.vocab)
    assert np.array_equal(scored(reference, pack, windows_of()).divergence, whole)


def test_noise_is_that_of_plain_numpy(reference: Reference, pack: PackSource, make_checkpoint: CheckpointMaker) -> None:
    with Silent().task("", 0) as task:
        found = measure(reference, pack, CPU, task)
    model = random_model(TINY, "bfloat16").float()
    for layer in range(LAYERS):
        experts = model.model.layers[layer].mlp.experts
        gate_up, down = experts.gate_up_proj.detach().double().numpy(), experts.down_proj.detach().double().numpy()
        wanted = dict(
            zip(PROJECTIONS, (gate_up[:, : TINY.intermediate], gate_up[:, TINY.intermediate :], down), strict=True)
        )
        records = [pack.pack.read_record(layer, expert) for expert in range(TINY.experts)]
        for index, name in enumerate(PROJECTIONS):
            got = np.stack([expert_matrix(record, pack.pack.records[layer], name) for record in records])
            noise = 10 * np.log10((wanted[name] ** 2).sum() / ((wanted[name] - got) ** 2).sum())
            assert found.decibels()[layer, index] == pytest.approx(noise, abs=1e-6)
    assert found.overall()["experts"] == pytest.approx(10 * np.log10(found.power.sum() / found.error.sum()))


def test_no_noise_is_infinite_and_null_in_json(pack: PackSource) -> None:
    with Silent().task("", 0) as task:
        found = measure(pack, pack, CPU, task)
    assert np.isinf(found.decibels()).all()
    assert found.document()["overall"] == dict.fromkeys(("gate", "up", "down", "experts"), math.inf)
    assert Noise(np.ones((1, 3)), np.full((1, 3), 0.1)).overall() == pytest.approx(
        {"gate": 10, "up": 10, "down": 10, "experts": 10}
    )


def test_a_layers_divergence_is_that_of_a_model_with_its_experts_alone(
    reference: Reference, pack: PackSource, two_bits: Path
) -> None:
    windows = windows_of((60, 70))
    with Silent().task("", 0) as task:
        found = layer_divergences(reference, pack, windows, CPU, experts_per_token=None, room=ROOM, task=task)
    assert len(found) == LAYERS
    for layer in (0, LAYERS - 1):
        mixed = eager(random_model(TINY, "bfloat16").float())
        other = reference_model(two_bits).model.layers[layer].mlp.experts
        mixed.model.layers[layer].mlp.experts.load_state_dict(other.state_dict())
        log_p = by_transformers(eager(random_model(TINY, "bfloat16").float()), windows)
        log_q = by_transformers(mixed, windows)
        wanted = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        assert found[layer].mean == pytest.approx(wanted, rel=1e-3)


class Counting:
    """A task that counts."""

    done = 0

    def advance(self, size: int) -> None:
        self.done += size

    def note(self, text: str) -> None:
        pass


@pytest.mark.parametrize("memory", [1, 10**9])
def test_answers_in_lockstep_are_the_engines(two_bits: Path, pack: PackSource, memory: int) -> None:
    """Ends among the tokens that the model gives, so that some answers stop early."""
    random = np.random.default_rng(6)
    prompts = [random.integers(0, TINY.vocab, length).tolist() for length in (12, 3, 40, 25)]
    plain = by_engine(two_bits, prompts, frozenset(), 12)
    ends = frozenset({plain[0][4], plain[2][7]})
    wanted = by_engine(two_bits, prompts, ends, 12)
    assert len({len(answer) for answer in wanted}) > 1
    task = Counting()
    found = greedy.answers(Sweep(pack, CPU), prompts, end_tokens=ends, longest=12, task=task, room=ROOM, memory=memory)
    assert found == wanted
    assert task.done == len(prompts)


def by_engine(path: Path, prompts: list[list[int]], ends: frozenset[int], longest: int) -> list[list[int]]:
    found = []
    with Pack.open(path) as pack, Engine.of(pack, EngineOptions(threads=2, context=64, exact=True)) as engine:
        stream = Language.of(pack).tokenizer
        for prompt in prompts:
            limits = Limits(longest, 64, ends)
            answer = Generation(engine.new_session(), prompt, Sampler(Sampling()), stream.stream(special=True), limits)
            list(answer)
            found.append(list(answer.result().tokens))
    return found


def test_other_models_and_vocabularies_are_refused(
    pack: PackSource, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    with (
        Checkpoint.open(str(make_checkpoint(Variant(ODD)))) as other,
        pytest.raises(UsageError, match="hidden_size is"),
    ):
        require_same_model(Reference(other), pack)
    path = make_checkpoint.copy(Variant(), tmp_path / "copy")
    content = (path / "tokenizer.json").read_text()
    with Checkpoint.open(str(path)) as same:
        (path / "tokenizer.json").write_text(content + "\n")
        require_same_model(Reference(same), pack)
        (path / "tokenizer.json").write_text(content.replace('"<|im_end|>"', '"<|im_over|>"'))
        with pytest.raises(UsageError, match="have different tokenizers"):
            require_same_model(Reference(same), pack)
        (path / "tokenizer.json").unlink()
        with pytest.raises(UsageError, match=r"has no tokenizer\.json"):
            require_same_model(Reference(same), pack)


def test_experts_from_a_source_keep_the_trunk_of_another(reference: Reference, pack: PackSource) -> None:
    windows = windows_of((30,))
    mixed = Sweep(ExpertsFrom(pack, reference), CPU)
    stream = mixed.run(mixed.embed(windows.corpus))
    whole = Sweep(reference, CPU)
    own = Passed(whole, whole.run(whole.embed(windows.corpus)))
    assert compare_streams(own, Passed(mixed, stream), windows).divergence.max() < 1e-6
