"""Whole models: the Metal backend against the CPU's, in all modes of the stand-in, and what a token costs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from checkpoints import CheckpointMaker
from metal.whole import CASES, TOLERANCE, Answers, Packs, along, backend_of, farthest, greedy, on_cpu, on_metal

from moepack.convert.shipped import QUESTION
from moepack.layout.reader import Pack
from moepack.runtime.asked import Asked
from moepack.runtime.backends.metal.needs import Extent, activation_bytes
from moepack.runtime.experts import ExpertStream
from moepack.runtime.language import Language
from moepack.runtime.streaming.slots import Bytes

MODES = {"in order": ("in-order", 0), "asynchronous": ("async", 1), "lazy": ("lazy", 0), "random": ("lazy", 20261129)}
GREEDY_TOKENS = 64
CHUNK = 16


@pytest.fixture(scope="module")
def packs(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return Packs(tmp_path_factory.mktemp("on-metal"), make_checkpoint)


@pytest.fixture(scope="module")
def prompt(packs: dict[str, Path]) -> list[int]:
    """The end of the demo's question: a few chunks of it."""
    with Pack.open(packs["demo"]) as pack:
        return Asked(messages=QUESTION).tokens(Language.of(pack))[-45:]


@pytest.fixture(scope="module")
def wanted(packs: dict[str, Path], prompt: list[int]) -> Answers:
    with on_cpu(packs["demo"], chunk=CHUNK) as engine:
        return greedy(engine.new_session(), prompt, GREEDY_TOKENS)


def behave(gpu: ModuleType | None, mode: str) -> None:
    """Have the stand-in run so; a real device runs as it does, and once is enough."""
    if gpu is not None:
        gpu.configure(mode=MODES[mode][0], order=MODES[mode][1])
    elif mode != "asynchronous":
        pytest.skip("a real device has no other mode")


def random_tokens(engine_vocabulary: int, count: int) -> list[int]:
    drawn: list[int] = np.random.default_rng(1).integers(0, engine_vocabulary, count).tolist()
    return drawn


@pytest.mark.parametrize("mode", MODES)
def test_the_demo_model_answers_as_on_the_cpu(
    gpu: ModuleType | None, packs: dict[str, Path], prompt: list[int], wanted: Answers, mode: str
) -> None:
    behave(gpu, mode)
    with on_metal(packs["demo"], chunk=CHUNK) as engine:
        found = greedy(engine.new_session(), prompt, GREEDY_TOKENS)
    assert found[0] == wanted[0]
    assert farthest(found[1], wanted[1]) < TOLERANCE


@pytest.mark.parametrize("case", [*CASES, "mixed"])
@pytest.mark.parametrize("mode", ["asynchronous", "random"])
def test_odd_models_answer_as_on_the_cpu(gpu: ModuleType | None, packs: dict[str, Path], case: str, mode: str) -> None:
    behave(gpu, mode)
    with on_cpu(packs[case], chunk=CHUNK) as engine:
        tokens = random_tokens(engine.model.vocab_size, 2 * CHUNK + 11)
        wanted = greedy(engine.new_session(), tokens, GREEDY_TOKENS if mode == "asynchronous" else 8)
    with on_metal(packs[case], chunk=CHUNK) as engine:
        found = greedy(engine.new_session(), tokens, len(wanted[0]))
    assert found[0] == wanted[0]
    assert farthest(found[1], wanted[1]) < TOLERANCE


@pytest.mark.parametrize("case", ["demo", "odd", "mixed"])
def test_the_checker_finds_nothing_in_a_whole_pass(fake: ModuleType, packs: dict[str, Path], case: str) -> None:
    fake.configure(mode="lazy", order=3, checked=True)
    with on_cpu(packs[case], chunk=CHUNK) as engine:
        tokens = random_tokens(engine.model.vocab_size, CHUNK + 3)
        wanted = greedy(engine.new_session(), tokens, 2)
    with on_metal(packs[case], chunk=CHUNK) as engine:
        found = along(engine.new_session(), tokens, wanted[0])
    assert not fake.found()
    assert farthest(found, wanted[1]) < TOLERANCE


@pytest.mark.usefixtures("gpu")
def test_a_prompt_token_by_token_is_what_it_is_in_chunks(packs: dict[str, Path]) -> None:
    """Tokens of which nobody wants logits: each has to wait for its GPU all the same."""
    with on_cpu(packs["odd"]) as engine:
        tokens = random_tokens(engine.model.vocab_size, 11)
        wanted = greedy(engine.new_session(), tokens, 3)
    with on_metal(packs["odd"], chunk=1) as engine:
        found = along(engine.new_session(), tokens, wanted[0])
    assert farthest(found, wanted[1]) < TOLERANCE


@pytest.mark.usefixtures("gpu")
def test_a_long_context_is_attended_to_in_parts(packs: dict[str, Path]) -> None:
    with on_cpu(packs["wide-heads"]) as engine:
        tokens = random_tokens(engine.model.vocab_size, 400)
        wanted = greedy(engine.new_session(), tokens, 3)
    with on_metal(packs["wide-heads"]) as engine:
        found = along(engine.new_session(), tokens, wanted[0])
    assert farthest(found, wanted[1]) < TOLERANCE


@pytest.mark.usefixtures("gpu")
def test_records_that_come_in_another_order_change_nothing(
    packs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ExpertStream.batches

    def backwards(stream: ExpertStream, layer: int, experts: Sequence[int]) -> Iterator[list[tuple[int, Bytes]]]:
        yield from ([each] for each in reversed([each for batch in whole(stream, layer, experts) for each in batch]))

    with on_metal(packs["odd"]) as engine:
        tokens = random_tokens(engine.model.vocab_size, 9)
        wanted = along(engine.new_session(), tokens, tokens)
        monkeypatch.setattr(ExpertStream, "batches", backwards)
        assert farthest(along(engine.new_session(), tokens, tokens), wanted) == 0


@pytest.mark.usefixtures("gpu")
def test_fewer_experts_and_few_slots_change_nothing_but_speed(packs: dict[str, Path]) -> None:
    with on_cpu(packs["odd"], experts_per_token=2) as engine:
        tokens = random_tokens(engine.model.vocab_size, 9)
        wanted = greedy(engine.new_session(), tokens, 6)
    with on_metal(packs["odd"], experts_per_token=2, slots=2) as engine:
        found = along(engine.new_session(), tokens, wanted[0])
        assert engine.stats.records_read > 20
    with on_metal(packs["odd"], experts_per_token=2) as engine:
        resident = along(engine.new_session(), tokens, wanted[0])
    assert farthest(found, wanted[1]) < TOLERANCE
    assert farthest(found, resident) == 0


@pytest.mark.usefixtures("gpu")
def test_experts_that_were_read_before_anybody_asked_change_nothing(packs: dict[str, Path]) -> None:
    with on_metal(packs["odd"]) as engine:
        tokens = random_tokens(engine.model.vocab_size, 9)
        wanted = along(engine.new_session(), tokens, tokens)
    with on_metal(packs["odd"]) as engine:
        while engine.fill():
            pass
        read = engine.stats.records_read
        assert read == engine.memory.slots
        assert farthest(along(engine.new_session(), tokens, tokens), wanted) == 0
        assert engine.stats.records_read == read
    with on_metal(packs["odd"], slots=5) as engine:
        session = engine.new_session()
        assert engine.fill()
        assert farthest(along(session, tokens, tokens), wanted) == 0


def test_a_trunk_and_slots_larger_than_a_buffer_lie_in_several(fake: ModuleType, packs: dict[str, Path]) -> None:
    with on_metal(packs["odd"]) as engine:
        tokens = random_tokens(engine.model.vocab_size, 9)
        wanted = along(engine.new_session(), tokens, tokens)
        assert (len(backend_of(engine).memory.pieces), len(backend_of(engine).slots.pieces)) == (1, 1)
    fake.configure(max_buffer_length=3 * 2**19)  # one matrix of the trunk is nearly as large
    with on_metal(packs["odd"], chunk=4) as engine:
        found = along(engine.new_session(), tokens, tokens)
        assert len(backend_of(engine).memory.pieces) > 1
        assert len(backend_of(engine).slots.pieces) > 1
    assert farthest(found, wanted) < TOLERANCE


@pytest.mark.usefixtures("gpu")
def test_all_logits_of_a_prompt_are_those_of_its_tokens(packs: dict[str, Path]) -> None:
    with on_cpu(packs["odd"]) as engine:
        tokens = random_tokens(engine.model.vocab_size, 40)
        wanted = engine.new_session().extend_all(tokens)
    with on_metal(packs["odd"]) as engine:
        assert np.abs(engine.new_session().extend_all(tokens) - wanted).max() < TOLERANCE


def test_a_token_costs_one_command_buffer_and_one_answer_per_layer(
    fake: ModuleType, packs: dict[str, Path], prompt: list[int]
) -> None:
    with on_metal(packs["demo"]) as engine:
        session, layers = engine.new_session(), engine.model.num_layers
        session.extend(prompt)
        session.extend([1])  # the first token compiles what only tokens need
        before = fake.counters()
        for token in (2, 3, 4):
            session.extend([token])
        spent = fake.counters() - before
    assert spent.command_buffers == 3
    assert spent.gpu_signals == spent.gpu_waits == 3 * layers
    assert spent.host_signals == 3 * layers
    assert spent.host_waits["MainThread"] == 3  # at the tokens' ends
    assert spent.host_waits["moepack-answers"] >= 3 * layers
    assert spent.allocated == ()
    assert not fake.outside_pools()


def test_a_second_session_takes_over_the_first_ones_buffers(fake: ModuleType, packs: dict[str, Path]) -> None:
    with on_metal(packs["odd"]) as engine:
        tokens = random_tokens(engine.model.vocab_size, 9)
        first = along(engine.new_session(), tokens, tokens)
        before = fake.counters()
        second = along(engine.new_session(), tokens, tokens)
        assert (fake.counters() - before).allocated == ()
    assert farthest(first, second) == 0


@pytest.fixture(params=["demo", "odd", "narrow", "tied", "wide-heads"])
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("chunk", [1, 24, 64])
def test_activations_stay_within_what_was_planned(packs: dict[str, Path], case: str, chunk: int) -> None:
    with on_metal(packs[case], chunk=chunk) as engine:
        tokens = random_tokens(engine.model.vocab_size, chunk)
        session = engine.new_session()
        session.extend(tokens)
        session.extend(tokens[:1])
        session.extend_all(tokens)
        planned = activation_bytes(engine.model, Extent(512, chunk, engine.experts_per_token))
        assert backend_of(engine).workspace.peak <= planned - 2**20
