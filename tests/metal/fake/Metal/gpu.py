"""The GPU: one thread that runs committed work, in the mode and order of the settings.

Queues run beside each other. Within a queue work starts in the order of commits, a wait for an event holds back all
that follows, and passes that Metal would not order may overlap: orders other than the first swap them. Command buffers
of a queue complete in order. `lock` guards everything of command buffers, events and order, and tells of changes.
"""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from . import settings
from .accounts import Step, account
from .faults import CommandFailed, MetalAssertion, reports
from .order import Order
from .settings import Mode
from .work import INTERNAL, End, Item, Pass, Signal, Wait

if TYPE_CHECKING:
    from .command_buffer import MTLCommandBuffer, MTLCommandQueue


class Gpu:
    """`queues` hold what is committed and not completed."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.order = Order()
        self.queues: list[MTLCommandQueue] = []
        self._demands: set[Callable[[], bool]] = set()
        self._thread: threading.Thread | None = None
        self._running = False
        self._parked = False  # it has found nothing that may run
        self._stopped = False
        self._idle = False
        self._picked = 0

    # What the host does.

    def committed(self) -> None:
        """There is more to run, or what was waited for has come."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="fake GPU", daemon=True)
            self._thread.start()
        with self.lock:
            self._fly()
            self._parked = False
            self.lock.notify_all()
            if settings.current().mode is Mode.IN_ORDER and threading.current_thread() is not self._thread:
                self.lock.wait_for(lambda: self._parked)

    def host_learns(self, passes: int) -> None:
        """The host knows that these have ended."""
        with self.lock:
            self.order.learn(passes)
            self._forget()

    def wait_for(self, condition: Callable[[], bool], seconds: float | None, what: str) -> bool:
        """Wait as a host does. Without a time limit it is an error if the condition does not come true."""
        account.host_waited()
        limit = settings.current().patience if seconds is None else seconds
        with self.demand(condition):
            met = self.lock.wait_for(condition, limit)
        if not met and seconds is None:
            raise MetalAssertion(f"the host waits for {what}, which does not come: {self.stuck()}")
        return met

    @contextmanager
    def demand(self, condition: Callable[[], bool]) -> Iterator[None]:
        """Somebody waits for this."""
        with self.lock:
            self._demands.add(condition)
            self.lock.notify_all()
            try:
                yield
            finally:
                self._demands.discard(condition)  # a reset may have been first

    def stuck(self) -> str:
        """Why nothing runs."""
        for wait in (w for queue in self.queues if (w := _blocking(queue))):
            return f"the GPU waits for event {wait.event._name} to have {wait.value}, and it has {wait.event._value}"
        return "nothing that is committed brings it"

    def reset(self) -> None:
        """Drop all work."""
        with self.lock:
            self._stopped = True
            self.lock.wait_for(lambda: not self._running)
            self._stopped = False
            for queue in self.queues:
                queue._pending.clear()
            self.queues.clear()
            self.order.forget()
            self._demands.clear()
            self._picked = 0

    # What its thread does.

    def _loop(self) -> None:
        while True:
            with self.lock:
                while (item := self._next()) is None:
                    self._parked = True
                    self.lock.notify_all()
                    self.lock.wait()
                self._running, self._parked, self._idle = True, False, False
            self._run(*item)
            with self.lock:
                item[1].done, self._running = True, False
                self._after()
                self.lock.notify_all()

    def _next(self) -> "tuple[MTLCommandBuffer, Item] | None":
        if self._stopped or self._waits_for_demand():
            return None
        picked = self._pick(settings.current().order)
        if picked is None:
            self._note_idle()
        return picked

    def _waits_for_demand(self) -> bool:
        return settings.current().mode is Mode.LAZY and all(condition() for condition in self._demands)

    def _pick(self, order: int) -> "tuple[MTLCommandBuffer, Item] | None":
        if order == 0:
            return next(self._ready(), None)
        ready = list(self._ready())
        if order == 1 or not ready:
            return ready[-1] if ready else None
        self._picked += 1
        return random.Random(f"{order} {self._picked}").choice(ready)

    def _ready(self) -> "Iterator[tuple[MTLCommandBuffer, Item]]":
        return (item for queue in self.queues for item in _ready(queue))

    def _note_idle(self) -> None:
        for wait, queue in ((w, queue) for queue in self.queues if (w := _blocking(queue)) and not self._idle):
            account.count("idle")
            account.step(Step("idle", queue._pending[0]._name, wait.event._name, wait.value))
            self._idle = True

    def _run(self, command_buffer: "MTLCommandBuffer", item: Item) -> None:
        command_buffer._begin()
        try:
            if isinstance(item, Pass):
                with self.lock:
                    self.order.begin(item, command_buffer._known_before(item))
                item.run()
                account.step(Step("pass", command_buffer._name, item.name))
            elif isinstance(item, Signal):
                with self.lock:
                    item.event._set(item.value, command_buffer._known_before(item))
                account.count("gpu_signals")
                account.step(Step("signal", command_buffer._name, item.event._name, item.value))
            else:
                command_buffer._complete()
        except CommandFailed as failed:
            command_buffer._fail(str(failed), failed.code)
        except Exception as error:
            reports.add("event" if isinstance(item, Signal) else "kernel", str(error))
            command_buffer._fail(str(error), INTERNAL)

    def _after(self) -> None:
        self._fly()
        self._forget()

    def _forget(self) -> None:
        if not any(queue._pending for queue in self.queues):
            self.order.forget_if_known()

    def _fly(self) -> None:
        """Work that needs nothing more from the host is in flight from now on."""
        while any(queue._advance(self.order) for queue in self.queues):
            pass


def _ready(queue: "MTLCommandQueue") -> "Iterator[tuple[MTLCommandBuffer, Item]]":
    """What of a queue may run now; a wait whose value has come is done in passing."""
    earlier: list[Pass] = []
    signalled = True
    for command_buffer in queue._pending:
        for item in command_buffer._items:
            if item.done:
                continue
            if isinstance(item, Wait):
                if item.event._value < item.value:
                    return
                command_buffer._waited(item)
            elif isinstance(item, Signal):
                if signalled and command_buffer._done_before(item):
                    yield command_buffer, item
                signalled = False
            elif isinstance(item, End):
                if command_buffer is queue._pending[0] and command_buffer._done_before(item):
                    yield command_buffer, item
            else:
                if not any(item.follows(other) for other in earlier):
                    yield command_buffer, item
                earlier.append(item)


def _blocking(queue: "MTLCommandQueue") -> Wait | None:
    """The wait that holds a queue back."""
    undone = (item for command_buffer in queue._pending for item in command_buffer._items if not item.done)
    first = next(undone, None)
    return first if isinstance(first, Wait) else None


gpu = Gpu()
