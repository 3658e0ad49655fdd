"""The thread that computes: requests wait for it in a bounded queue, clients taking turns; it waits for none of them.

While there is nothing to compute it reads experts into memory that is still free, in pieces of some ten milliseconds,
so that the first request finds them. A pack that cannot be read then is logged, and an error for who needs it only.
Promises that a request which was taken is told how it ended, also when the scheduler is closed or its thread fails,
after which nothing is taken. Knows no client.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from ...manifests.errors import MoepackError
from ..engine import Engine
from ..generate import Limits, check_room
from ..sessions.prefixes import Prefixes
from .batch import Batch, Counts
from .request import Request
from .waiting import Waiting

log = logging.getLogger("moepack.server")


class BusyError(MoepackError):
    """There is no room now; try again in about `seconds`."""

    def __init__(self, why: str, seconds: float) -> None:
        super().__init__(f"{why}; try again in {seconds:.0f} s")
        self.seconds = seconds


class ClosingError(MoepackError):
    """Nothing is taken any more, and what is under way ends; another server may take it."""

    def __init__(self, why: str = "the server is about to end") -> None:
        super().__init__(why)


class Scheduler:
    """Takes requests from any thread; a context manager begins and ends it.

    At most `most_waiting` wait, of one client at most `most_each`, by default as many. `told` is called by the thread
    that computes whenever answers were told what there is for now: after each step, and as requests begin and end.
    """

    def __init__(
        self,
        engine: Engine,
        prefixes: Prefixes,
        most_waiting: int,
        most_each: int | None = None,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._told = told
        self._batch = Batch(engine, prefixes, told)
        self._waiting = Waiting(most_waiting, most_waiting if most_each is None else most_each)
        self._woken = threading.Condition()
        self._left = 0  # cancelled while they waited; counted by the thread that counts the others
        self._closed: ClosingError | None = None
        self._ending = False
        self._filling = True
        self._thread = threading.Thread(target=self._run, name="moepack-batch", daemon=True)

    @property
    def counts(self) -> Counts:
        """Totals, which go on."""
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
    def filling(self) -> bool:
        """Whether there may be more experts to read while nothing is computed."""
        return self._filling

    @property
    def closed(self) -> bool:
        """Whether nothing is taken any more."""
        return self._closed is not None

    def submit(self, *requests: Request) -> None:
        """Queue a client's request, or several: all of them or none.

        Raises BusyError if too many wait, ClosingError if nothing is taken any more, UsageError for one that can never
        be computed.
        """
        for request in requests:
            check_room(0, request.prompt, Limits(1, self._engine.context))
        with self._woken:
            if self._closed is not None:
                raise ClosingError(*self._closed.args)
            if self._waiting.full(requests[0].client, len(requests)):
                waiting = len(self._waiting)
                raise BusyError(f"there is no room in the queue, where {waiting} requests wait", 1.0 + waiting)
            for request in requests:
                self._waiting.put(request)
            self._woken.notify()

    def cancel(self, request: Request) -> None:
        """End a request, wherever it is; nothing more is told of it. Harmless once it has ended."""
        request.cancelled = True
        with self._woken, suppress(ValueError):
            self._woken.notify()
            self._waiting.remove(request)
            self._left += 1

    def stop_taking(self) -> None:
        """Take nothing any more; what was taken is computed until `close`. Never waits for the thread."""
        with self._woken:
            self._closed = self._closed or ClosingError()

    def close(self) -> None:
        """Fail all requests with a ClosingError, and wait for the step under way."""
        self.stop_taking()
        with self._woken:
            self._ending = True
            self._woken.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> "Scheduler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while self._admitted():
                self._batch.step()
                self._told()
            self._end(ClosingError())
        except Exception as error:  # whoever waits for this thread would wait forever
            log.exception("the thread that computes has failed; nothing is taken any more")
            self._closed = ClosingError("the server cannot go on, as its log says; start it again")
            self._end(error)

    def _end(self, error: Exception) -> None:
        """Fail all that runs and waits; nothing was taken since `closed`."""
        with self._woken:
            self._count_left()
            waiting = list(self._waiting)
            self._waiting.clear()
        try:
            self._batch.end(error)
        finally:
            for request in waiting:
                if not request.cancelled:
                    request.fail(error)
            self._told()

    def _admitted(self) -> bool:
        """Begin with as many as there are sessions for, waiting for one if there is none; False at the end."""
        self._fill()
        begun = list[Request]()
        with self._woken:
            self._woken.wait_for(self._called)
            if self._ending:
                return False
            while self._waiting and (self._waiting.first.cancelled or len(begun) < self._batch.free):
                request = self._waiting.take()
                if request.cancelled:
                    self._left += 1
                else:
                    begun.append(request)
            self._count_left()
        for request in begun:
            self._batch.admit(request)
        if begun:
            self._told()
        return True

    def _called(self) -> bool:
        """Whether there is anything to do that cannot wait."""
        return bool(self._ending or self._waiting or self._batch.running)

    def _fill(self) -> None:
        """Read experts until there is something to do, or all are read for which there is memory."""
        while self._filling and not self._called():
            try:
                self._filling = self._engine.fill()
            except Exception as error:
                self._filling = False
                defect = None if isinstance(error, MoepackError) else error
                log.error("experts are read when they are needed only: %s", error, exc_info=defect)

    def _count_left(self) -> None:
        """Those who left the queue since."""
        self._batch.counts.cancelled += self._left
        self._left = 0
