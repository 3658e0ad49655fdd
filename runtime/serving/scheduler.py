"""The thread that computes: requests wait for it in a bounded queue, in order, and it never waits for them.

Promises that a request which was taken is told how it ended, also when the scheduler is closed. Knows no client.
"""

import threading
from collections import deque

from ...manifests.errors import MoepackError, UsageError
from ..engine import Engine
from ..sessions.prefixes import Prefixes
from .batch import Batch, Counts
from .request import Request


class BusyError(MoepackError):
    """The queue is full; try again in about `seconds`."""

    def __init__(self, waiting: int, seconds: float) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again in {seconds:.0f} s")
        self.seconds = seconds


class Scheduler:
    """Takes requests from any thread, of which at most `most_waiting` wait; a context manager begins and ends it."""

    def __init__(self, engine: Engine, prefixes: Prefixes, most_waiting: int) -> None:
        self._engine = engine
        self._most_waiting = most_waiting
        self._batch = Batch(engine, prefixes)
        self._waiting: deque[Request] = deque()
        self._woken = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="moepack-batch", daemon=True)

    @property
    def counts(self) -> Counts:
        """Totals so far."""
        return self._batch.counts

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that have."""
        return self._batch.running

    @property
    def closed(self) -> bool:
        """Whether nothing is taken any more."""
        return self._closed

    def submit(self, request: Request) -> None:
        """Queue a request. Raises BusyError if too many wait, UsageError for one that can never be computed."""
        self._check(request)
        with self._woken:
            if self._closed:
                raise UsageError("the server is about to end")
            if len(self._waiting) >= self._most_waiting:
                raise BusyError(len(self._waiting), 1.0 + len(self._waiting))
            self._waiting.append(request)
            self._woken.notify()

    def cancel(self, request: Request) -> None:
        """End a request, wherever it is; nothing more is told of it."""
        request.cancelled = True
        with self._woken:
            self._woken.notify()

    def close(self) -> None:
        """Fail all requests, and wait for the step under way."""
        with self._woken:
            self._closed = True
            self._woken.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> "Scheduler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, request: Request) -> None:
        if not request.prompt:
            raise UsageError("the prompt is empty; give some text")
        if len(request.prompt) >= self._engine.context:
            raise UsageError(
                f"the prompt has {len(request.prompt)} tokens, and with a context of {self._engine.context} no answer"
                " fits; shorten the prompt or raise the context"
            )

    def _run(self) -> None:
        while self._admitted():
            self._batch.step()
        self._batch.end(UsageError("the server is about to end"))

    def _admitted(self) -> bool:
        """Begin with as many as there are sessions for, waiting for one if there is none; False at the end."""
        with self._woken:
            self._woken.wait_for(lambda: self._closed or self._waiting or self._batch.running)
            closed, begun, ended = self._closed, list[Request](), list[Request]()
            while self._waiting and (closed or self._waiting[0].cancelled or len(begun) < self._batch.free):
                request = self._waiting.popleft()
                (ended if closed or request.cancelled else begun).append(request)
        for request in begun:
            self._batch.admit(request)
        for request in ended:
            if not request.cancelled:
                request.answer.fail(UsageError("the server is about to end"))
        return not closed
