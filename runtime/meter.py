"""What a chat template takes, counted: turns, time, and bytes of all that it builds, up to an allowance.

Promises SecurityError once one rendering is over it. What an operation builds, the sandbox says.
"""

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

from jinja2.exceptions import SecurityError

MAX_LOOPS = 1_000_000  # all `range` calls of one rendering together
MAX_BITS = 4096  # of a whole number
SECONDS = 1.5  # of this thread's processor time
MEMORY = 24 * 1024 * 1024  # bytes of all that is ever built, besides what the chat's own size allows
NUMBER = 1300  # digits of the longest number
CONTAINERS = (list, tuple, dict)
VIEWS: tuple[type, ...] = (type({}.items()), type({}.keys()), type({}.values()))
PER_INPUT_BYTE = 256  # templates may go over a chat again and again
ITEM = 64  # bytes of a list for each of its items, the item's own head included


class Meter:
    """What one rendering may still take; `own` are bytes of what it was given."""

    def __init__(self, own: int) -> None:
        self._left = MEMORY + PER_INPUT_BYTE * own
        self._loops = MAX_LOOPS
        self._end = time.thread_time() + SECONDS + own * 1e-5
        self._ticks = 0
        self._weights: dict[int, _Weight] = {}
        self._kept: list[Any] = []  # so that no other value gets the id of one that was weighed

    def tick(self) -> None:
        """One more turn of a loop, or operation."""
        self._ticks += 1
        if self._ticks % 32 == 0 and time.thread_time() > self._end:
            raise SecurityError("it computes for too long")

    def spend(self, size: int) -> None:
        """`size` more bytes are about to be built."""
        self.tick()
        self._left -= size
        if self._left < 0:
            raise SecurityError("it builds more than a chat template needs")

    def loop(self, turns: int) -> None:
        """A `range` of so many numbers."""
        self._loops -= turns
        if self._loops < 0:
            raise SecurityError(f"it loops more than {MAX_LOOPS} times")

    def built(self, value: Any) -> Any:
        """`value`, just built: what showing or comparing it would take is known, and is not too much."""
        if isinstance(value, str):
            self.spend(size(value))
        elif type(value) in CONTAINERS:
            self.spend(ITEM * (len(value) + 6))  # six for what is noted of it here
            if self.weight(value).plain > MEMORY:
                raise SecurityError("it builds more than a chat template needs, of parts that are shared")
        elif type(value) is int and value.bit_length() > MAX_BITS:
            raise SecurityError(f"it computes a number of more than {MAX_BITS} bits")
        return value

    def show(self, value: Any) -> None:
        """A value is about to be written as text, by whatever rules."""
        if isinstance(value, str) or type(value) in CONTAINERS or isinstance(value, VIEWS):
            self.spend(self.weight(value).shown)

    def weight(self, value: Any) -> "_Weight":
        """What a value weighs with all that is in it, as often as it is in it."""
        if isinstance(value, str):
            return _Weight(ITEM + len(value), ITEM + shown(value), 0)
        if isinstance(value, VIEWS):
            return self._together(value)
        if type(value) not in CONTAINERS:
            return _Weight(ITEM, NUMBER, 0)
        if id(value) not in self._weights:
            self._weights[id(value)] = self._together([*value, *value.values()] if type(value) is dict else value)
            self._kept.append(value)
        return self._weights[id(value)]

    def _together(self, parts: Any) -> "_Weight":
        plain, written, depth = ITEM, ITEM, 0
        for part in map(self.weight, parts):
            plain, written, depth = plain + part.plain, written + part.shown, max(depth, part.depth)
        return _Weight(plain, written, depth + 1)


class _Weight(NamedTuple):
    plain: int  # bytes
    shown: int  # bytes of it as text, at most
    depth: int


def size(text: str) -> int:
    """Bytes of a text, at most."""
    return len(text) * (1 if text.isascii() else 4)


def shown(text: str) -> int:
    """Bytes of a text once it is escaped, at most, by the rules of Python, JSON or HTML, or in another case."""
    return len(text) * (6 if text.isascii() else 20)


_METER: ContextVar[Meter] = ContextVar("meter")


@contextmanager
def metered(own: int) -> Iterator[Meter]:
    """A block whose templates have a meter; `own` are bytes of what they are given."""
    meter = Meter(own)
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)


def current() -> Meter:
    """The meter of the block that is running."""
    return _METER.get(None) or Meter(0)  # while jinja2 folds the constants of a template that is being compiled


class Counted:
    """An iterable whose turns are counted; `stored` bytes are kept of each."""

    def __init__(self, inner: Iterable[Any], stored: int) -> None:
        self._inner, self._stored = inner, stored

    def __iter__(self) -> Iterator[Any]:
        meter = current()
        for item in self._inner:
            meter.spend(self._stored)
            yield item


def drawn(inner: Iterable[Any], stored: int = ITEM, *, written: bool = False) -> Iterator[Any]:
    """What comes out of an iterable that somebody is about to keep, or to write, each item counted."""
    meter = current()
    for item in inner:
        meter.spend(stored + (size(item) if isinstance(item, str) else 0))
        if written:
            meter.show(item)
        yield item


class CountedAndSized(Counted):
    """The same, of an iterable that says how long it is."""

    def __len__(self) -> int:
        return len(cast(Sized, self._inner))
