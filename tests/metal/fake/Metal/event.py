"""Events and fences: what orders work that Metal would not.

Who waits for a value of an event learns that the passes are done which came before the signal of that value: not those
before a later one, even if that has come as well.
"""

import functools
import operator
import threading
from collections.abc import Callable
from typing import Any

from .accounts import account
from .bridge import Labelled, NSObject, selector
from .faults import MetalAssertion
from .gpu import gpu


class MTLEvent(Labelled):
    """For GPUs only."""

    def __init__(self) -> None:
        super().__init__()
        self._value = 0
        self._promised = 0  # the highest value that will come without anything further from the host
        self._signals: list[tuple[int, int]] = []  # (value, the passes known to have ended)
        gpu.order.hold(self)

    def _set(self, value: int, known: int) -> None:
        if value < self._value:
            raise MetalAssertion(f"event {self._name} goes back from {self._value} to {value}")
        self._value = value
        self._promised = max(self._promised, value)
        self._signals.append((value, known))
        gpu.lock.notify_all()

    def _known_at(self, value: int) -> int:
        """The passes that have ended for whoever waited for `value`."""
        known = 0
        for signalled, passes in self._signals:
            known |= passes
            if signalled >= value:
                break
        return known

    def _forget_passes(self) -> None:
        self._signals = [(self._value, 0)]


class MTLSharedEvent(MTLEvent):
    """For GPUs and the host. To look at the value is not to wait: in lazy mode nothing runs for it."""

    @selector(gives="Q")
    def signaledValue(self) -> int:
        with gpu.lock:
            value = self._value
            gpu.host_learns(self._known_at(value))
            return value

    @selector("Q")
    def setSignaledValue_(self, value: int) -> None:
        account.count("host_signals")
        with gpu.lock:
            gpu.order.look()
            self._set(value, gpu.order.host)
        gpu.committed()

    @selector("QQ", gives="Z")
    def waitUntilSignaledValue_timeoutMS_(self, value: int, milliseconds: int) -> bool:
        seconds = min(milliseconds / 1000, threading.TIMEOUT_MAX)
        met = gpu.wait_for(lambda: self._value >= value, seconds, f"event {self._name} to have {value}")
        if met:
            self._learn(value)
        return met

    @selector("@Q?")
    def notifyListener_atValue_block_(
        self, listener: "MTLSharedEventListener", value: int, block: Callable[[Any, int], None]
    ) -> None:
        threading.Thread(target=self._notify, args=(value, block), name="event listener", daemon=True).start()

    def _notify(self, value: int, block: Callable[[Any, int], None]) -> None:
        with gpu.demand(lambda: self._value >= value):
            gpu.lock.wait_for(lambda: self._value >= value)
        self._learn(value)
        block(self, value)

    def _learn(self, value: int) -> None:
        with gpu.lock:
            gpu.host_learns(self._known_at(value))


class MTLSharedEventListener(NSObject):
    """Where blocks of notifyListener run: here, each in a thread of its own."""


class MTLFence(Labelled):
    """Orders passes of one queue."""

    def __init__(self) -> None:
        super().__init__()
        self._updated = False
        self._updated_by: list[Any] = []  # passes, as committed, that are not forgotten
        gpu.order.hold(self)

    def _update(self, work: Any) -> None:
        self._updated = True
        self._updated_by.append(work)

    def _known_to(self, waiting: Any) -> int:
        """The passes that have ended for one that waits for this."""
        before = [w for w in self._updated_by if w.bit < waiting.bit and w.queue is waiting.queue]
        return functools.reduce(operator.or_, (w.bit | w.clock for w in before), 0)

    def _forget_passes(self) -> None:
        self._updated_by = []
