"""Several sequences at once: each gets the logits that it would get alone, bit for bit, whoever is beside it."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from checkpoints import ODD, TINY, CheckpointMaker, Variant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packs import build_pack

from moepack.manifests.errors import MismatchError, UsageError
from moepack.runtime.engine import Engine, EngineOptions, Session, Turn

CASES = {
    "tiny": (Variant(TINY), "affine2-g64", "source"),
    "odd": (Variant(ODD), "affine4-g64", "affine8-g64"),
}
CHUNK = 48


@pytest.fixture(scope="module")
def packs(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packs")
    for name, (variant, expert_format, trunk) in CASES.items():
        build_pack(make_checkpoint(variant), folder / name, expert_format=expert_format, trunk=trunk)
    return {name: folder / name for name in CASES}


def opened(path: Path, **options: object) -> Engine:
    return Engine.open(path, EngineOptions(threads=2, chunk=CHUNK, **options))  # type: ignore[arg-type]


def tokens_of(engine: Engine, count: int, seed: int) -> list[int]:
    return list(map(int, np.random.default_rng(seed).integers(0, engine.model.vocab_size, count)))


def alone(engine: Engine, pieces: Sequence[Sequence[int]]) -> list[np.ndarray]:
    session = engine.new_session()
    return [session.extend(piece) for piece in pieces]


@pytest.mark.parametrize("exact", [False, True], ids=["rounded", "exact"])
@pytest.mark.parametrize("case", CASES)
def test_eight_streams_are_those_of_eight_solo_runs(packs: dict[str, Path], case: str, exact: bool) -> None:
    with opened(packs[case], exact=exact) as engine:
        prompts = [tokens_of(engine, 3 + 5 * index, index) for index in range(8)]
        answers = [tokens_of(engine, 6, 100 + index) for index in range(8)]
        wanted = [
            alone(engine, [prompt, *([token] for token in answer)])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        sessions = [engine.new_session() for _ in prompts]
        found = [[session.extend(prompt)] for session, prompt in zip(sessions, prompts, strict=True)]
        for step in range(6):
            asked = [Turn(session, [answer[step]]) for session, answer in zip(sessions, answers, strict=True)]
            for stream, logits in zip(found, engine.extend(asked), strict=True):
                stream.append(logits[0])
    assert np.array_equal(found, wanted)


def test_streams_beside_each_other_find_part_of_their_experts_in_few_slots(packs: dict[str, Path]) -> None:
    """Reading all that a step wants at once would drive out what the next step wants: there would be next to none."""
    with opened(packs["odd"], slots=8) as engine:
        sessions = [engine.new_session() for _ in range(8)]
        assert engine.model.num_layers * engine.model.num_experts > 2 * 8

        def step(number: int) -> None:
            tokens = tokens_of(engine, 8, number)
            engine.extend([Turn(session, [token]) for session, token in zip(sessions, tokens, strict=True)])

        step(0)
        before = engine.stats
        for number in range(1, 13):
            step(number)
        hits, read = engine.stats.slot_hits - before.slot_hits, engine.stats.records_read - before.records_read
        assert hits > (hits + read) / 8


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(1, 12), min_size=3, max_size=3), min_size=1, max_size=4), st.integers(0, 2**16))
def test_prompts_and_answers_mixed_in_any_way_change_no_bit(
    packs: dict[str, Path], sizes: list[list[int]], seed: int
) -> None:
    """Each inner list: how many tokens a sequence is given in three rounds, of which it may miss some."""
    with opened(packs["odd"], slots=4) as engine:
        pieces = [
            [tokens_of(engine, size, seed + 10 * index + step) for step, size in enumerate(steps)]
            for index, steps in enumerate(sizes)
        ]
        wanted = [alone(engine, each) for each in pieces]
        sessions, found = [engine.new_session() for _ in pieces], [list[np.ndarray]() for _ in pieces]
        turn = 0
        while any(len(done) < 3 for done in found):
            turn += 1
            here = [i for i, done in enumerate(found) if len(done) < 3 and (turn + i + seed) % 3]
            asked = [Turn(sessions[i], pieces[i][len(found[i])]) for i in here]
            for i, logits in zip(here, engine.extend(asked) if asked else [], strict=True):
                found[i].append(logits[0])
    assert np.array_equal(found, wanted)


def test_an_expert_is_read_once_for_all(packs: dict[str, Path]) -> None:
    with opened(packs["odd"], slots=1) as engine:
        sessions = [engine.new_session() for _ in range(6)]
        for session in sessions:
            session.extend([5, 7])
        before = engine.stats.records_read
        engine.extend([Turn(session, [9]) for session in sessions])
        together = engine.stats.records_read - before
        for session in sessions:
            session.extend([9])
        apart = engine.stats.records_read - before - together
    assert together * 3 < apart


def test_what_cannot_be_computed_at_once_is_refused(packs: dict[str, Path]) -> None:
    with opened(packs["tiny"]) as engine:
        one, other = engine.new_session(), engine.new_session()
        with pytest.raises(ValueError, match="at most 48 tokens"):
            engine.extend([Turn(one, [1] * 40), Turn(other, [1] * 9)])
        with pytest.raises(ValueError, match="that differ"):
            engine.extend([Turn(one, [1]), Turn(one, [1])])
        with pytest.raises(UsageError, match="outside the model's vocabulary"):
            engine.extend([Turn(one, [1]), Turn(other, [10**6])])
        assert one.position == other.position == 0
        assert np.array_equal(engine.extend([Turn(one, [1]), Turn(other, [2])])[0][0], alone(engine, [[1]])[0])


def test_damage_ends_all_that_were_computed_with_it_and_no_other(packs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "pack"
    shutil.copytree(packs["tiny"], path)
    with opened(path, slots=1) as engine:
        one, other, third = (engine.new_session() for _ in range(3))
        wanted = alone(engine, [[1, 2], [3]])[1]
        for session in (one, other, third):
            session.extend([1, 2])
        files = sorted((path / "experts").iterdir())
        kept = files[1].read_bytes()
        files[1].chmod(0o644)
        files[1].write_bytes(bytes(byte ^ 1 for byte in kept))
        with pytest.raises(MismatchError):
            engine.extend([Turn(one, [3]), Turn(other, [4])])
        files[1].write_bytes(kept)
        for session in (one, other):
            with pytest.raises(UsageError, match="ended by an error"):
                session.extend([3])
        assert np.array_equal(third.extend([3]), wanted)


def test_memory_is_planned_for_all_sessions(packs: dict[str, Path]) -> None:
    with opened(packs["tiny"], context=64) as one, opened(packs["tiny"], context=64, sessions=5) as five:
        assert five.memory.state == 5 * one.memory.state


def test_a_chunk_holds_a_token_of_each_session(packs: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="too few for 49 sequences"):
        opened(packs["tiny"], sessions=49)


def test_memory_is_left_to_remembered_prompts(packs: dict[str, Path]) -> None:
    budget = {"memory": 10**9, "context": 64}
    with opened(packs["tiny"], **budget) as one, opened(packs["tiny"], **budget, prefix_bytes=10**8) as other:
        assert other.memory.parts()["prefixes"] == 10**8
        assert other.memory.total <= 10**9
        assert "prefixes" not in one.memory.parts()
    with pytest.raises(UsageError, match="too few: give --memory"):
        opened(packs["tiny"], **budget, prefix_bytes=10**9)


def test_a_session_of_a_closed_engine_is_refused_in_company_too(packs: dict[str, Path]) -> None:
    with opened(packs["tiny"]) as engine:
        session: Session = engine.new_session()
    with pytest.raises(UsageError, match="closed"):
        engine.extend([Turn(session, [1])])
