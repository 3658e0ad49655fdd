"""Continuous batching: in every step each answer gets a token, and prompts as many as there is room for.

All rows of a step go through a layer together, so an expert that several of them want is read once. Prompts continue
from the longest beginning that is remembered, and are remembered themselves: at their marks, where they part from
others, at their end, and with their answer. A prompt that several want at once is computed once for them. What fails in
one request, or in remembering it, is that one's alone; if an expert cannot be read, all of that step fail. On CPUs no
request's logits depend on who else is there. Single-threaded.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ...manifests.errors import MoepackError, UsageError
from ..engine import Engine, Session, Turn
from ..sessions.prefixes import Prefixes
from .request import Request

log = logging.getLogger("moepack.server")
BESIDE_ANSWERS = 256  # prompt tokens of a step that others wait for with their next token


@dataclass
class Counts:
    """Totals since the batch was made."""

    steps: int = 0
    prompt_tokens: int = 0  # computed
    cached_tokens: int = 0  # of prompts, found remembered
    answer_tokens: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0


@dataclass(eq=False)
class _Running:
    """A request that has a session, in which are the first of its `tokens`."""

    request: Request
    session: Session
    tokens: list[int]
    stops: deque[int]  # positions in the prompt to remember, ascending
    leader: "_Running | None" = None  # computes the same prompt; until that is done there is nothing in the session

    @property
    def left(self) -> int:
        """Tokens that are not in the session yet."""
        return len(self.tokens) - self.session.position

    @property
    def answering(self) -> bool:
        """Whether its prompt is done with."""
        return len(self.tokens) > len(self.request.prompt)


class Batch:
    """At most as many requests as the engine's memory was planned for sessions; see `admit` and `step`.

    `told` is called when all have been told what a step brings, before what takes longer: remembering it.
    """

    def __init__(self, engine: Engine, prefixes: Prefixes, told: Callable[[], None] = lambda: None) -> None:
        self.counts = Counts()
        self._engine, self._prefixes, self._told = engine, prefixes, told
        self._idle = [engine.new_session() for _ in range(engine.options.sessions)]
        self._running: list[_Running] = []
        self._finished: list[_Running] = []  # in this step; their sessions are still to be remembered

    @property
    def free(self) -> int:
        """How many requests could be admitted."""
        return len(self._idle)

    @property
    def running(self) -> int:
        """How many are under way."""
        return len(self._running)

    def admit(self, request: Request) -> None:
        """Begin with a request, which fits the context; there must be a free session. One that cannot begin fails."""
        session = self._idle.pop()
        try:
            running = self._begun(request, session)
        except Exception as error:
            self._idle.append(session)
            _log_defect(error)
            self.counts.failed += 1
            request.fail(error)
        else:
            self._running.append(running)

    def step(self) -> None:
        """Compute one step of all requests, tell each what came of it, and let go of those that ended."""
        for running in [each for each in self._followers_first() if each.request.cancelled]:
            self.counts.cancelled += 1
            self._release(running)
        turns = list(self._turns())
        if not turns:
            return
        try:
            found = self._engine.extend([turn for _, turn in turns])
        except Exception as error:
            for running, _ in turns:
                self._fail(running, error)
            return
        self.counts.steps += 1
        for (running, turn), logits in zip(turns, found, strict=True):
            self._count(running, turn)
            if turn.wanted:
                self._answer_all(running, logits[-1])
        self._told()
        for running, _ in turns:
            if running in self._running:
                self._remember(running)
        while self._finished:
            self._leave(self._finished.pop())

    def end(self, error: Exception) -> None:
        """Fail all that is under way."""
        for running in self._followers_first():
            self._fail(running, error)

    def _followers_first(self) -> list[_Running]:
        """All that run, so that nobody who is about to go is left a prompt by a leader."""
        return sorted(self._running, key=lambda each: each.leader is None)

    def _begun(self, request: Request, session: Session) -> _Running:
        """Behind whoever computes the same prompt, or on its own."""
        running = _Running(request, session, list(request.prompt), deque())
        alike = (each for each in self._running if each.leader is None and each.tokens == running.tokens)
        running.leader = None if request.read is not None else next(alike, None)
        if running.leader is None:
            self._begin(running)
        else:
            running.leader.stops = _merged(running.leader, request.marks)
        return running

    def _begin(self, running: _Running) -> None:
        """With what is remembered of its prompt in its session."""
        request, session = running.request, running.session
        known = self._prefixes.find(request.prompt)
        session.restore(known.snapshots if request.read is None else ())
        running.stops = _merged(running, {*request.marks, known.parts, len(request.prompt)})
        self._tell(running)

    def _tell(self, running: _Running) -> None:
        """That it begins, with what others have computed of it."""
        running.leader = None
        running.request.answer.begin(running.session.position)
        self.counts.cached_tokens += running.session.position

    def _turns(self) -> Iterator[tuple[_Running, Turn]]:
        """What each request is given in this step: answers one token, then prompts what room there is."""
        held = 0
        answering = [running for running in self._running if running.answering]
        prompts = [running for running in self._running if not running.answering and running.leader is None]
        room = self._engine.memory.chunk - len(answering)
        if answering:
            room = min(room, BESIDE_ANSWERS)
        for running in answering:
            yield running, Turn(running.session, running.tokens[-1:], 1)
        for index, running in enumerate(prompts):
            share = -(-room // (len(prompts) - index))
            if (count := min(running.left, share)) > 0:
                room -= count
                first = running.session.position
                marks, held = self._marks(running, first + count, held)
                done, read = first + count == len(running.tokens), running.request.read
                yield running, Turn(running.session, running.tokens[first : first + count], int(done), marks, read)

    def _marks(self, running: _Running, last: int, held: int) -> tuple[list[int], int]:
        """Where inside of a turn that ends at `last` copies are to be made, and what these and others' then hold.

        Room is made for them before: copies beyond it are not made at all.
        """
        first, found = running.session.position, list[int]()
        for stop in [stop for stop in running.stops if stop < last]:
            size = self._taken(running, stop, held)
            if size is None:
                running.stops.remove(stop)
            else:
                found.append(stop - first)
                held += size
        return found, held

    def _taken(self, running: _Running, stop: int, held: int) -> int | None:
        """Bytes of a copy at `stop`; None if it would not be remembered beside others that hold so many."""
        try:
            node = self._prefixes.deepest(running.tokens[:stop])
            size = running.session.snapshot_bytes(node.position, stop)
            return size if self._prefixes.takes(node, held + size) else None
        except Exception:
            log.exception("a prompt is not remembered, because of a defect")
            return None

    def _count(self, running: _Running, turn: Turn) -> None:
        if running.answering:
            self.counts.answer_tokens += 1
        else:
            self.counts.prompt_tokens += len(turn.tokens)

    def _remember(self, running: _Running) -> None:
        """Snapshots of where they are worth it."""
        while running.stops and running.stops[0] <= running.session.position:
            self._add(running, running.stops.popleft())

    def _add(self, running: _Running, last: int) -> None:
        """The session up to `last`, if all goes well; the answer does not depend on it."""
        try:
            self._added(running, last)
        except Exception:
            log.exception("a prompt is not remembered, because of a defect")

    def _added(self, running: _Running, last: int) -> None:
        """The session up to `last`, after what is remembered of it: others may have added or dropped some by now."""
        tokens = running.tokens[:last]
        node = self._prefixes.deepest(tokens)
        if node.position < last and self._prefixes.takes(node, running.session.snapshot_bytes(node.position, last)):
            snapshot = running.session.snapshot(node.position, last)
            self._prefixes.add(node, tokens[node.position :], snapshot)

    def _answer_all(self, running: _Running, logits: Sequence[float]) -> None:
        """Of a request, and of those that waited for its prompt."""
        behind = [each for each in self._running if each.leader is running]
        for each in behind:
            self._try(each, self._join)
        for each in [running, *behind]:
            if each in self._running:
                self._answer(each, logits)

    def _join(self, running: _Running) -> None:
        """Its leader's prompt is done."""
        assert running.leader is not None
        running.session.follow(running.leader.session)
        self._tell(running)

    def _pass_on(self, running: _Running) -> None:
        """Who waits for a prompt that is given up goes on with it, or begins anew if that failed."""
        heirs = [each for each in self._running if each.leader is running]
        if not heirs:
            return
        heir, *others = heirs
        for each in others:
            each.leader = heir
        if running.session.failed:
            heir.leader = None
            self._try(heir, self._begin)
        else:
            heir.session, running.session, heir.stops = running.session, heir.session, running.stops
            self._try(heir, self._tell)

    def _try(self, running: _Running, begin: Callable[[_Running], None]) -> None:
        try:
            begin(running)
        except Exception as error:
            self._fail(running, error)

    def _answer(self, running: _Running, logits: Sequence[float]) -> None:
        try:
            token = running.request.answer.next(logits)  # type: ignore[arg-type]
        except Exception as error:
            self._fail(running, error)
            return
        if token is None:
            self.counts.finished += 1
            self._running.remove(running)
            self._finished.append(running)
        elif running.session.position < self._engine.context:
            running.tokens.append(token)
        else:  # whoever answers counts tokens, and should have known
            self._fail(running, UsageError(f"the context of {self._engine.context} tokens is full"))

    def _leave(self, running: _Running) -> None:
        """One that has ended is remembered with its answer, and another may have its session."""
        self._remember(running)
        self._add(running, running.session.position)
        self._idle.append(running.session)

    def _fail(self, running: _Running, error: Exception) -> None:
        _log_defect(error)
        self.counts.failed += 1
        self._release(running)
        running.request.fail(error)

    def _release(self, running: _Running) -> None:
        self._running.remove(running)
        self._pass_on(running)
        self._idle.append(running.session)


def _merged(running: _Running, marks: Iterable[int]) -> deque[int]:
    """Where it stops already, and those marks that it has not passed yet."""
    ahead = (mark for mark in marks if running.session.position < mark <= len(running.request.prompt))
    return deque(sorted({*running.stops, *ahead}))


def _log_defect(error: Exception) -> None:
    """Whoever asked is told that the log says more."""
    if not isinstance(error, MoepackError):
        log.error("a request has failed, because of a defect", exc_info=error)
