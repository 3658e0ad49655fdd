"""The thread that computes: a bounded queue, clients in turn, reading when idle, and all are told how it ended."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import ODD, CheckpointMaker, Variant
from packs import build_pack

from moepack.manifests.errors import MismatchError, UsageError
from moepack.runtime.engine import Engine, EngineOptions
from moepack.runtime.serving.batch import Batch
from moepack.runtime.serving.request import Request
from moepack.runtime.serving.scheduler import BusyError, ClosingError, Scheduler
from moepack.runtime.sessions.prefixes import Prefixes

PATIENCE = 60.0


@pytest.fixture(scope="module")
def path(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packs") / "odd"
    build_pack(make_checkpoint(Variant(ODD)), path, expert_format="affine4-g64", trunk="affine8-g64")
    return path


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[Engine]:
    with Engine.open(path, EngineOptions(threads=1, chunk=40, sessions=2, context=100)) as engine:
        yield engine


class Waited:
    """An answer of so many likeliest tokens, which stops at `gate` if there is one."""

    def __init__(self, count: int, gate: threading.Event | None = None) -> None:
        self.tokens: list[int] = []
        self.error: Exception | None = None
        self.begun, self.over = threading.Event(), threading.Event()
        self._count, self._gate = count, gate

    def begin(self, cached: int) -> None:
        self.begun.set()

    def next(self, logits: np.ndarray) -> int | None:
        if self._gate is not None:
            assert self._gate.wait(PATIENCE)
        self.tokens.append(int(np.argmax(logits)))
        if len(self.tokens) < self._count:
            return self.tokens[-1]
        self.over.set()
        return None

    def fail(self, error: Exception) -> None:
        self.error = error
        self.over.set()


def test_requests_of_many_threads_are_answered(engine: Engine) -> None:
    answers = [Waited(5) for _ in range(12)]
    with Scheduler(engine, Prefixes(10**8), 12) as scheduler:
        threads = [
            threading.Thread(target=scheduler.submit, args=(Request([index + 1, 3], answer),))
            for index, answer in enumerate(answers)
        ]
        for thread in threads:
            thread.start()
        assert all(answer.over.wait(PATIENCE) for answer in answers)
        for thread in threads:
            thread.join()
    for index, answer in enumerate(answers):
        session = engine.new_session()
        assert answer.tokens[0] == int(np.argmax(session.extend([index + 1, 3])))
    assert [answer.error for answer in answers] == [None] * 12


def test_a_full_queue_says_when_to_try_again(engine: Engine) -> None:
    gate = threading.Event()
    with Scheduler(engine, Prefixes(0), 2) as scheduler:
        running = Waited(2, gate)
        scheduler.submit(Request([1, 2], running))
        assert running.begun.wait(PATIENCE)
        waiting = [Waited(1) for _ in range(2)]
        for answer in waiting:
            scheduler.submit(Request([1, 2], answer))
        with pytest.raises(BusyError, match="no room in the queue, where 2 requests wait") as busy:
            scheduler.submit(Request([1, 2], Waited(1)))
        assert busy.value.seconds >= 1
        gate.set()
        assert all(answer.over.wait(PATIENCE) for answer in (running, *waiting))


def test_clients_take_turns(engine: Engine) -> None:
    order: list[str] = []

    class Noted(Waited):
        def __init__(self, name: str) -> None:
            super().__init__(1)
            self._name = name

        def begin(self, cached: int) -> None:
            order.append(self._name)
            super().begin(cached)

    scheduler, answers = Scheduler(engine, Prefixes(0), 20), list[Noted]()
    for name in ["a"] * 10 + ["b"] + ["c"] * 2:
        answers.append(Noted(name))
        scheduler.submit(Request([len(answers), 2], answers[-1], client=name))
    with scheduler:
        assert all(answer.over.wait(PATIENCE) for answer in answers)
    assert "".join(order) == "abcac" + "a" * 8


def test_one_client_leaves_places_to_others(engine: Engine) -> None:
    scheduler = Scheduler(engine, Prefixes(0), 4, 3)
    scheduler.submit(*(Request([1, 2], Waited(1), client="a") for _ in range(2)))
    with pytest.raises(BusyError):  # neither of the two is queued
        scheduler.submit(*(Request([1, 2], Waited(1), client="a") for _ in range(2)))
    assert scheduler.waiting == 2
    scheduler.submit(Request([1, 2], Waited(1), client="a"))
    scheduler.submit(Request([1, 2], Waited(1), client="b"))
    with pytest.raises(BusyError):
        scheduler.submit(Request([1, 2], Waited(1), client="c"))


def test_one_who_left_the_queue_is_never_begun(engine: Engine) -> None:
    gate = threading.Event()
    with Scheduler(engine, Prefixes(0), 4) as scheduler:
        running = [Waited(2, gate) for _ in range(2)]
        for answer in running:
            scheduler.submit(Request([1, 2], answer))
        left, after = Waited(1), Waited(1)
        leaving = Request([1, 2], left)
        scheduler.submit(leaving)
        scheduler.submit(Request([1, 2], after))
        scheduler.cancel(leaving)
        gate.set()
        assert after.over.wait(PATIENCE)
    assert not left.begun.is_set()
    assert not left.over.is_set()


def test_at_the_end_everybody_is_told(engine: Engine) -> None:
    gate = threading.Event()
    scheduler = Scheduler(engine, Prefixes(0), 4)
    with scheduler:
        answers = [Waited(90, gate) for _ in range(4)]
        for answer in answers:
            scheduler.submit(Request([1, 2], answer))
        assert answers[0].begun.wait(PATIENCE)
        ending = threading.Thread(target=scheduler.close)
        ending.start()
        while not scheduler.closed:
            pass
        gate.set()
        ending.join()
    assert [type(answer.error) for answer in answers] == [ClosingError] * 4
    with pytest.raises(ClosingError, match="about to end"):
        scheduler.submit(Request([1], Waited(1)))


@pytest.mark.parametrize("prompt", [[], [1] * 100])
def test_what_can_never_be_computed_is_refused_at_once(engine: Engine, prompt: list[int]) -> None:
    with pytest.raises(UsageError, match=r"empty|no answer fits"):
        Scheduler(engine, Prefixes(0), 4).submit(Request(prompt, Waited(1)))


class Stepping(Waited):
    """Does something after each of its tokens."""

    def __init__(self, *then: Callable[[], None]) -> None:
        super().__init__(len(then))
        self._then = then

    def next(self, logits: np.ndarray) -> int | None:
        token = super().next(logits)
        self._then[len(self.tokens) - 1]()
        return token


def nothing() -> None:
    pass


def test_who_leaves_the_queue_makes_room_in_it_at_once(engine: Engine) -> None:
    gate = threading.Event()
    with Scheduler(engine, Prefixes(0), 2) as scheduler:
        running = Waited(2, gate)
        scheduler.submit(Request([1, 2], running))
        assert running.begun.wait(PATIENCE)
        stays, leaves, comes = Waited(1), Waited(1), Waited(1)
        leaving = Request([1, 2], leaves)
        scheduler.submit(Request([1, 2], stays))
        scheduler.submit(leaving)
        for _ in range(2):
            scheduler.cancel(leaving)
        assert scheduler.waiting == 1
        scheduler.submit(Request([1, 2], comes))
        gate.set()
        assert comes.over.wait(PATIENCE)
        assert stays.over.wait(PATIENCE)
    assert not leaves.begun.is_set()
    assert scheduler.counts.cancelled == 1


def test_at_the_queue_s_head_nobody_waits_who_has_left(engine: Engine) -> None:
    leaving, seen = Request([1, 2], Waited(1)), list[tuple[int, int]]()
    scheduler = Scheduler(engine, Prefixes(0), 4)

    def leave() -> None:
        scheduler.submit(leaving)
        leaving.cancelled = True

    def look() -> None:
        seen.append((scheduler.waiting, scheduler.running))

    both = [Stepping(leave, look, nothing), Waited(9)]
    for answer in both:
        scheduler.submit(Request([1, 2], answer))
    with scheduler:
        assert all(answer.over.wait(PATIENCE) for answer in both)
    assert seen == [(0, 2)]  # though there was no session for who had left
    assert scheduler.counts.cancelled == 1


def test_a_prompt_that_cannot_be_begun_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scheduler(engine, Prefixes(0), 4) as scheduler:
        with monkeypatch.context() as patch:
            patch.setattr(Prefixes, "find", _refused)
            for _ in range(engine.options.sessions + 1):
                answer = Waited(1)
                scheduler.submit(Request([1, 2], answer))
                assert answer.over.wait(PATIENCE)
                assert isinstance(answer.error, IsADirectoryError)
        assert not scheduler.closed
        answer = Waited(2)
        scheduler.submit(Request([1, 2], answer))
        assert answer.over.wait(PATIENCE)
        assert answer.error is None
    assert (scheduler.counts.failed, scheduler.counts.finished) == (engine.options.sessions + 1, 1)


def test_a_defect_of_the_thread_is_told_to_all_and_closes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batch, "_turns", _refused)
    scheduler = Scheduler(engine, Prefixes(0), 4)
    answers = [Waited(2), Unhearing(2), *(Waited(2) for _ in range(2))]
    for answer in answers:
        scheduler.submit(Request([1, 2], answer))
    with scheduler:
        assert all(answer.over.wait(PATIENCE) for answer in answers)
        assert scheduler.closed
        assert [type(answer.error) for answer in answers] == [IsADirectoryError] * 4
        with pytest.raises(ClosingError, match="start it again"):
            scheduler.submit(Request([1, 2], Waited(1)))


class Unhearing(Waited):
    """Cannot be told that it failed."""

    def fail(self, error: Exception) -> None:
        super().fail(error)
        raise RuntimeError("the event loop is closed")


def _refused(*_: object) -> None:
    raise IsADirectoryError("a state file")


def test_once_nothing_is_taken_what_was_taken_goes_on(engine: Engine) -> None:
    gate = threading.Event()
    with Scheduler(engine, Prefixes(0), 4) as scheduler:
        answers = [Waited(2, gate) for _ in range(3)]
        for answer in answers:
            scheduler.submit(Request([1, 2], answer))
        scheduler.stop_taking()
        assert scheduler.closed
        with pytest.raises(ClosingError, match="about to end"):
            scheduler.submit(Request([1], Waited(1)))
        gate.set()
        assert all(answer.over.wait(PATIENCE) for answer in answers)
    assert [answer.error for answer in answers] == [None] * 3


class Fills:
    """Stands in for an engine's filling: does something for each of so many pieces; `calls` counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pieces: int, then: Callable[[], None] = nothing) -> None:
        self.calls, self._pieces, self._then = 0, pieces, then
        monkeypatch.setattr(Engine, "fill", lambda engine: self._fill())

    def _fill(self) -> bool:
        self.calls += 1
        self._then()
        return self.calls < self._pieces


def filled(scheduler: Scheduler) -> None:
    end = time.monotonic() + PATIENCE
    while scheduler.filling:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_who_has_nothing_to_compute_reads_experts_and_answers_the_same(path: Path) -> None:
    options, prompt = EngineOptions(threads=1, chunk=40, sessions=2, context=100), [5, 3, 8]
    with Engine.open(path, options) as engine:
        session, wanted = engine.new_session(), list[np.ndarray]()
        for tokens in (prompt, [7], [1]):
            wanted.append(session.extend(tokens))
        needed = engine.stats.records_read
    with Engine.open(path, options) as engine, Scheduler(engine, Prefixes(0), 4) as scheduler:
        filled(scheduler)
        read = engine.stats.records_read
        assert read == engine.model.num_layers * engine.model.num_experts > needed
        told = Told([7, 1])
        scheduler.submit(Request(prompt, told))
        assert told.over.wait(PATIENCE)
        assert engine.stats.records_read == read
    assert all(np.array_equal(found, logits) for found, logits in zip(told.logits, wanted, strict=True))


class Told(Waited):
    """Says these tokens, and notes all logits."""

    def __init__(self, says: list[int]) -> None:
        super().__init__(len(says) + 1)
        self.logits: list[np.ndarray] = []
        self._says = says

    def next(self, logits: np.ndarray) -> int | None:
        self.logits.append(logits.copy())
        return None if super().next(logits) is None else self._says[len(self.tokens) - 1]


def test_a_request_waits_for_one_piece_at_most(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()
    answer = Stepping(*[lambda: calls.append(fills.calls)] * 3)
    fills = Fills(monkeypatch, 9, lambda: scheduler.submit(Request([1, 2], answer)) if fills.calls == 2 else None)
    scheduler = Scheduler(engine, Prefixes(0), 4)
    with scheduler:
        assert answer.over.wait(PATIENCE)
        filled(scheduler)
    assert calls == [2, 2, 2]  # none between its steps
    assert fills.calls == 9  # and the rest afterwards


def test_once_all_is_read_nothing_is_tried_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    fills = Fills(monkeypatch, 1)
    with Scheduler(engine, Prefixes(0), 4) as scheduler:
        for _ in range(3):
            answer = Waited(2)
            scheduler.submit(Request([1, 2], answer))
            assert answer.over.wait(PATIENCE)
        filled(scheduler)
        time.sleep(0.05)
    assert fills.calls == 1


def test_who_has_much_to_read_ends_when_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()
    fills = Fills(monkeypatch, 10**9, begun.set)
    with Scheduler(engine, Prefixes(0), 4) as scheduler:
        assert begun.wait(PATIENCE)
    assert scheduler.filling
    calls = fills.calls
    time.sleep(0.02)
    assert fills.calls == calls


@pytest.mark.parametrize("kind", [MismatchError, IsADirectoryError])
def test_what_cannot_be_read_ahead_is_logged_once_and_ends_nobody(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: type[Exception]
) -> None:
    def fail() -> None:
        raise kind("layer 1, expert 3")

    fills = Fills(monkeypatch, 9, fail)
    with Scheduler(engine, Prefixes(0), 4) as scheduler:
        filled(scheduler)
        answer = Waited(2)
        scheduler.submit(Request([1, 2], answer))
        assert answer.over.wait(PATIENCE)
        assert not scheduler.closed
    assert answer.error is None
    assert fills.calls == 1
    [record] = caplog.records
    assert record.getMessage() == "experts are read when they are needed only: layer 1, expert 3"
    assert bool(record.exc_info) == (kind is IsADirectoryError)  # a defect, with its traceback
