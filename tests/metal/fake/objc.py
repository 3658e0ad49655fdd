"""The little of PyObjC's `objc` that a Metal host needs: autorelease pools.

An autoreleased object lives until the innermost pool of its thread drains. Without a pool it is never released, which
is what `outside_pools` lists; the real bridge leaks it as silently as it would here.
"""

import threading
from collections import Counter
from types import TracebackType
from typing import TypeVar

Thing = TypeVar("Thing")
_pools = threading.local()
outside_pools: Counter[str] = Counter()  # class names of objects that no pool will release
_leaked: list[object] = []


class autorelease_pool:  # noqa: N801 (PyObjC's name)
    """`with objc.autorelease_pool():` releases at its end what was autoreleased within."""

    def __enter__(self) -> None:
        _stack().append([])

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        released = _stack().pop()
        if not isinstance(error, AssertionError):  # where Metal would have ended the process, nothing is released
            for thing in released:
                if (release := getattr(thing, "_release", None)) is not None:
                    release()


def autoreleased(thing: Thing) -> Thing:
    """Leave `thing` to the innermost pool of this thread. (Of the stand-in; PyObjC has no such function.)"""
    if _stack():
        _stack()[-1].append(thing)
    else:
        outside_pools[type(thing).__name__] += 1
        _leaked.append(thing)
    return thing


def forget_leaks() -> None:
    """Begin a new account. (Of the stand-in.)"""
    outside_pools.clear()
    _leaked.clear()


def _stack() -> list[list[object]]:
    if not hasattr(_pools, "stack"):
        _pools.stack = []
    stack: list[list[object]] = _pools.stack
    return stack
