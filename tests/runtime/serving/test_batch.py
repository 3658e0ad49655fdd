"""Requests in a batch: each answers as it would alone, whatever comes and goes beside it."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from checkpoints import ODD, CheckpointMaker, Variant
from packs import build_pack

from moepack.manifests.errors import MoepackError, UsageError
from moepack.runtime.engine import Engine, EngineOptions, Turn
from moepack.runtime.serving import batch as batches
from moepack.runtime.serving.batch import Batch
from moepack.runtime.serving.request import Request
from moepack.runtime.sessions.prefixes import Prefixes

NOTHING, PLENTY = 0, 10**9


@pytest.fixture(scope="module")
def pack(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packs") / "odd"
    build_pack(make_checkpoint(Variant(ODD)), path, expert_format="affine4-g64", trunk="affine8-g64")
    return path


@pytest.fixture
def engine(pack: Path) -> Iterator[Engine]:
    with Engine.open(pack, EngineOptions(threads=2, chunk=40, sessions=3, context=200)) as engine:
        yield engine


class Greedy:
    """An answer of so many likeliest tokens."""

    def __init__(self, count: int, fails_at: int | None = None) -> None:
        self.tokens: list[int] = []
        self.cached: int | None = None
        self.error: Exception | None = None
        self.ended = False
        self._count, self._fails_at = count, fails_at

    def begin(self, cached: int) -> None:
        self.cached = cached

    def next(self, logits: np.ndarray) -> int | None:
        if len(self.tokens) == self._fails_at:
            raise UsageError("no such token")
        self.tokens.append(int(np.argmax(logits)))
        self.ended = len(self.tokens) == self._count
        return None if self.ended else self.tokens[-1]

    def fail(self, error: Exception) -> None:
        self.error = error


def prompt(engine: Engine, size: int, seed: int) -> list[int]:
    return list(map(int, np.random.default_rng(seed).integers(0, engine.model.vocab_size, size)))


def solo(engine: Engine, tokens: list[int], count: int) -> list[int]:
    session, found = engine.new_session(), list[int]()
    logits = session.extend(tokens)
    while True:
        found.append(int(np.argmax(logits)))
        if len(found) == count:
            return found
        logits = session.extend(found[-1:])


def run(batch: Batch, waiting: list[Request]) -> None:
    for _ in range(1000):
        if not waiting and not batch.running:
            return
        while waiting and batch.free:
            batch.admit(waiting.pop(0))
        batch.step()
    raise AssertionError("somebody is waited for in vain")


@pytest.mark.parametrize("remembered", [NOTHING, 60_000, PLENTY])
@pytest.mark.parametrize("seed", range(4))
def test_every_answer_is_that_of_a_solo_run(engine: Engine, seed: int, remembered: int) -> None:
    order = random.Random(seed)
    system = prompt(engine, 30, 99)
    prompts = [
        system[: order.randrange(31)] + prompt(engine, order.randrange(1, 60), 7 * seed + index) for index in range(9)
    ]
    prompts.append(prompts[3])
    answers = [Greedy(order.randrange(1, 12)) for _ in prompts]
    prefixes = Prefixes(remembered)
    batch = Batch(engine, prefixes)
    run(batch, [Request(*both) for both in zip(prompts, answers, strict=True)])
    for tokens, answer in zip(prompts, answers, strict=True):
        assert answer.tokens == solo(engine, tokens, len(answer.tokens))
        assert answer.ended
    assert batch.counts.finished == len(prompts)
    assert batch.counts.prompt_tokens + batch.counts.cached_tokens == sum(map(len, prompts))
    assert (batch.counts.cached_tokens > 0) == (remembered == PLENTY) or remembered == 60_000
    assert prefixes.size <= remembered


def test_a_conversation_goes_on_from_where_it_was(engine: Engine) -> None:
    batch, tokens = Batch(engine, Prefixes(PLENTY)), prompt(engine, 70, 1)
    first = Greedy(5)
    run(batch, [Request(tokens, first)])
    more = [*tokens, *first.tokens, *prompt(engine, 4, 2)]
    second = Greedy(3)
    run(batch, [Request(more, second)])
    assert second.tokens == solo(engine, more, 3)
    assert second.cached == 74  # the last token of an answer was never computed with


def test_a_mark_and_a_parting_are_remembered(engine: Engine) -> None:
    batch, system = Batch(engine, Prefixes(PLENTY)), prompt(engine, 50, 3)
    answers = [Greedy(2) for _ in range(5)]
    endings = [prompt(engine, 9, 10 + index) for index in range(5)]
    for index, answer in enumerate(answers):
        marks = frozenset({20}) if index == 0 else frozenset[int]()
        run(batch, [Request([*system, *endings[index]], answer, marks)])
    assert [answer.cached for answer in answers] == [0, 20, 50, 50, 50]


def test_who_goes_away_makes_room_and_disturbs_nobody(engine: Engine) -> None:
    batch = Batch(engine, Prefixes(PLENTY))
    stays, goes = Greedy(8), Greedy(10**6)
    one, other = Request(prompt(engine, 9, 4), stays), Request(prompt(engine, 12, 5), goes)
    batch.admit(one)
    batch.admit(other)
    for _ in range(4):
        batch.step()
    other.cancelled = True
    run(batch, [])
    assert (batch.free, batch.counts.cancelled) == (3, 1)
    assert stays.tokens == solo(engine, list(one.prompt), 8)
    assert not goes.ended


def test_an_answer_that_fails_fails_alone(engine: Engine) -> None:
    batch, good, bad = Batch(engine, Prefixes(PLENTY)), Greedy(6), Greedy(6, fails_at=2)
    tokens = prompt(engine, 9, 6)
    run(batch, [Request(tokens, good), Request(prompt(engine, 5, 7), bad)])
    assert isinstance(bad.error, UsageError)
    assert good.tokens == solo(engine, tokens, 6)
    assert batch.counts.failed == 1


def test_a_defect_is_logged_with_its_traceback(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    batch, answer = Batch(engine, Prefixes(PLENTY)), Greedy(6)
    monkeypatch.setattr(answer, "next", {}.__getitem__)
    run(batch, [Request(prompt(engine, 9, 6), answer)])
    assert answer.error is not None
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is answer.error


def test_damage_fails_all_of_a_step_and_nobody_after_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, answers = Batch(engine, Prefixes(PLENTY)), [Greedy(6) for _ in range(3)]
    tokens = [prompt(engine, 9, 20 + index) for index in range(3)]
    for index in range(2):
        batch.admit(Request(tokens[index], answers[index]))
    batch.step()
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "extend", _damaged)
        batch.step()
    assert [type(answer.error) for answer in answers] == [MoepackError, MoepackError, type(None)]
    run(batch, [Request(tokens[2], answers[2])])
    assert answers[2].tokens == solo(engine, tokens[2], 6)


def _damaged(*_: object) -> None:
    raise MoepackError("layer 3 is damaged")


def test_an_answer_that_does_not_end_with_the_context_fails_alone(engine: Engine) -> None:
    batch, answer, tokens = Batch(engine, Prefixes(NOTHING)), Greedy(10**6), prompt(engine, 190, 8)
    run(batch, [Request(tokens, answer)])
    assert answer.tokens == solo(engine, tokens, 11)
    assert "the context of 200 tokens is full" in str(answer.error)


def test_answers_do_not_wait_for_all_of_a_prompt(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BESIDE_ANSWERS", 8)
    batch = Batch(engine, Prefixes(NOTHING))
    batch.admit(Request(prompt(engine, 30, 1), Greedy(9)))
    batch.step()
    assert batch.counts.prompt_tokens == 30  # nobody waits
    batch.admit(Request(prompt(engine, 30, 2), Greedy(9)))
    batch.step()
    assert (batch.counts.prompt_tokens, batch.counts.answer_tokens) == (38, 1)


def test_copies_of_one_turn_fit_the_memory_together(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    session, turns, extend = engine.new_session(), list[Turn](), Engine.extend
    first, second = session.snapshot_bytes(0, 10), session.snapshot_bytes(0, 20)

    def watched(engine: Engine, given: Sequence[Turn]) -> list[np.ndarray]:
        turns.extend(given)
        return extend(engine, given)

    monkeypatch.setattr(Engine, "extend", watched)
    for limit, marks in ((first + second - 1, [10]), (first + second, [10, 20])):
        batch = Batch(engine, Prefixes(limit))
        batch.admit(Request(prompt(engine, 30, 1), Greedy(1), frozenset({10, 20})))
        batch.step()
        assert list(turns.pop().marks) == marks


@pytest.mark.parametrize("name", ["takes", "add", "deepest"])
def test_what_cannot_be_remembered_is_answered_all_the_same(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Prefixes, name, _refused)
    batch, answer, tokens = Batch(engine, Prefixes(PLENTY)), Greedy(4), prompt(engine, 60, 1)
    run(batch, [Request(tokens, answer, frozenset({20}))])
    assert answer.tokens == solo(engine, tokens, 4)
    assert (batch.counts.finished, batch.counts.failed, batch.free) == (1, 0, 3)


def _refused(*_: object) -> None:
    raise IsADirectoryError("a state file")


def test_a_prompt_that_several_want_at_once_is_computed_once(engine: Engine) -> None:
    tokens, batch = prompt(engine, 100, 4), Batch(engine, Prefixes(NOTHING))
    answers = [Greedy(count) for count in (1, 6, 9)]
    run(batch, [Request(list(tokens), answer) for answer in answers])
    assert [answer.tokens for answer in answers] == [solo(engine, tokens, count) for count in (1, 6, 9)]
    assert [answer.cached for answer in answers] == [0, 100, 100]
    assert (batch.counts.prompt_tokens, batch.counts.cached_tokens, batch.counts.finished) == (100, 200, 3)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_who_waits_for_a_prompt_goes_on_with_it_when_it_is_given_up(engine: Engine, steps: int) -> None:
    tokens, batch = prompt(engine, 100, 5), Batch(engine, Prefixes(NOTHING))
    requests = [Request(list(tokens), Greedy(4)) for _ in range(3)]
    for request in requests:
        batch.admit(request)
    for _ in range(steps):
        batch.step()
    requests[0].cancelled = True
    run(batch, [])
    for request in requests[1:]:
        assert request.answer.tokens == solo(engine, tokens, 4)  # type: ignore[attr-defined]
    assert batch.counts.prompt_tokens == 100
    assert (batch.counts.cancelled, batch.counts.finished, batch.free) == (1, 2, 3)


def test_who_waits_for_a_prompt_that_fails_begins_anew(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, batch = prompt(engine, 100, 6), Batch(engine, Prefixes(NOTHING))
    answers = [Greedy(4) for _ in range(3)]
    for answer in answers:
        batch.admit(Request(list(tokens), answer))
    batch.step()

    def broken(turns: Sequence[Turn]) -> list[np.ndarray]:
        for turn in turns:
            turn.session.failed = True
        raise MoepackError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "extend", broken)
        batch.step()
    run(batch, [])
    assert [type(answer.error) for answer in answers] == [MoepackError, type(None), type(None)]
    assert [answer.tokens for answer in answers[1:]] == [solo(engine, tokens, 4)] * 2
    assert (batch.counts.failed, batch.counts.finished, batch.free) == (1, 2, 3)


def test_of_those_that_want_a_prompt_one_that_cannot_answer_fails_alone(engine: Engine) -> None:
    tokens, batch = prompt(engine, 20, 7), Batch(engine, Prefixes(PLENTY))
    answers = [Greedy(4, fails_at=0), Greedy(4, fails_at=2), Greedy(4)]
    run(batch, [Request(list(tokens), answer) for answer in answers])
    assert [type(answer.error) for answer in answers] == [UsageError, UsageError, type(None)]
    assert answers[2].tokens == solo(engine, tokens, 4)
    assert batch.free == 3


def test_who_brings_a_prompt_that_another_answers_already_begins_on_its_own(engine: Engine) -> None:
    tokens, batch = prompt(engine, 60, 8), Batch(engine, Prefixes(NOTHING))
    first, second = Greedy(9), Greedy(4)
    batch.admit(Request(list(tokens), first))
    while len(first.tokens) < 3:
        batch.step()
    batch.admit(Request(list(tokens), second))
    run(batch, [])
    assert (first.tokens, second.tokens) == (solo(engine, tokens, 9), solo(engine, tokens, 4))


@pytest.mark.parametrize("marks", [({70}, set()), (set(), {70})])
def test_marks_of_a_shared_prompt_are_remembered_whoever_has_them(engine: Engine, marks: tuple[set[int], ...]) -> None:
    tokens, batch = prompt(engine, 100, 5), Batch(engine, Prefixes(PLENTY))
    requests = [Request(list(tokens), Greedy(4), frozenset(each)) for each in marks]
    for request in requests:
        batch.admit(request)
    batch.step()
    requests[0].cancelled = True
    run(batch, [])
    later = Greedy(1)
    run(batch, [Request([*tokens[:80], *prompt(engine, 5, 6)], later)])
    assert later.cached == 70


class Unheard(Greedy):
    """An answer that nobody takes any more."""

    def begin(self, cached: int) -> None:
        raise UsageError("nobody takes it")


@pytest.mark.parametrize("ends", [False, True])
def test_who_goes_together_is_left_no_prompt(engine: Engine, ends: bool) -> None:
    tokens, batch = prompt(engine, 100, 5), Batch(engine, Prefixes(NOTHING))
    requests = [Request(list(tokens), answer) for answer in (Greedy(4), Unheard(4), Unheard(4))]
    for request in requests:
        batch.admit(request)
    batch.step()
    if ends:
        batch.end(MoepackError("the server ends"))
    else:
        for request in requests:
            request.cancelled = True
        batch.step()
    assert (batch.running, batch.free, batch.counts.cached_tokens) == (0, 3, 0)
    assert (batch.counts.failed, batch.counts.cancelled) == ((3, 0) if ends else (0, 3))


def test_all_hear_of_a_step_before_it_is_remembered(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prompt's copy takes its time, and nobody's token waits for it: neither the first one nor the last."""
    happened, prefixes = list[str](), Prefixes(PLENTY)
    batch = Batch(engine, prefixes, lambda: happened.append("told"))
    add = prefixes.add
    monkeypatch.setattr(prefixes, "add", lambda *what: [happened.append("remembered"), add(*what)])
    answer = Greedy(2)
    batch.admit(Request(prompt(engine, 30, 1), answer))
    batch.step()
    assert len(answer.tokens) == 1
    assert happened == ["told", "remembered"]
    batch.step()
    assert answer.ended
    assert happened == ["told", "remembered"] * 2
    assert batch.free == 3
    assert not batch.running
