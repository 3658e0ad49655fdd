"""What PyObjC does between Python and Metal: every method is a selector whose arguments it checks.

`@selector("nQQ", gives="@")` states the types of a method's arguments and of its result, one letter each. A test
compares every method here with PyObjC's own metadata. `NSObject` is the base of all classes.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from . import settings
from .accounts import Allocation

# Letters of types: the bridge's own, but for n (bytes whose number is the next argument), p (objects, likewise),
# o (where to put an error: None is passed, and the error returned beside the result), S (MTLSize), R (NSRange).
Check = Callable[[Any], bool]


def _whole(low: int, high: int) -> Check:
    return lambda x: isinstance(x, int) and not isinstance(x, bool) and low <= x < high


def _wholes(count: int) -> Check:
    return lambda x: isinstance(x, tuple | list) and len(x) == count and all(map(_whole(0, 1 << 64), x))


CHECKS: dict[str, tuple[str, Check]] = {
    "Q": ("an integer from 0 to 2^64 - 1", _whole(0, 1 << 64)),
    "q": ("an integer from -2^63 to 2^63 - 1", _whole(-(1 << 63), 1 << 63)),
    "z": ("a byte", _whole(0, 256)),
    "Z": ("a bool", lambda x: isinstance(x, bool)),
    "@": ("an object", lambda x: True),
    "?": ("a callable or None", lambda x: x is None or callable(x)),
    "n": ("bytes", lambda x: x is not None),
    "p": ("a sequence of objects", lambda x: isinstance(x, tuple | list)),
    "o": ("None, being where the error goes", lambda x: x is None),
    "S": ("an MTLSize", _wholes(3)),
    "R": ("an NSRange", _wholes(2)),
}


class BridgeError(TypeError):
    """PyObjC would refuse this call."""


def selector(takes: str = "", gives: str = "v") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a method what PyObjC makes of the selector of its name: `_` stands for `:`."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        name = method.__name__.replace("_", ":")

        @wraps(method)
        def call(self: Any, *arguments: Any) -> Any:
            check_arguments(name, takes, arguments)
            return method(self, *arguments)

        call.selector, call.takes, call.gives = name, takes, gives  # type: ignore[attr-defined]
        return call

    return decorate


def check_arguments(name: str, takes: str, arguments: tuple[Any, ...]) -> None:
    """Raise BridgeError unless PyObjC would pass these arguments on."""
    if len(arguments) != len(takes):
        raise BridgeError(f"{name} takes {len(takes)} arguments, not {len(arguments)}")
    for i, (letter, argument) in enumerate(zip(takes, arguments, strict=True)):
        wanted, check = CHECKS[letter]
        if not check(argument):
            raise BridgeError(f"{name}: argument {i} has to be {wanted}, not {argument!r}")
        if letter in "np":
            _check_length(name, argument, arguments[i + 1], letter)


def _check_length(name: str, argument: Any, count: Any, letter: str) -> None:
    there = memoryview(argument).nbytes if letter == "n" else len(argument)
    if isinstance(count, int) and there < count:
        raise BridgeError(f"{name}: {count} were announced, but only {there} are there")


class NSObject:
    """What every object of the bridge has."""

    def __init__(self) -> None:
        self._label: str | None = None

    @classmethod
    def alloc(cls) -> Any:
        return cls

    @classmethod
    def init(cls) -> Any:
        return cls()

    @classmethod
    def new(cls) -> Any:
        return cls()

    def retainCount(self) -> int:
        """How many owners there are: one too many of what a `new...` method gave, where the bridge over-retains."""
        return 2 if getattr(self, "_over_retained", False) else 1

    @property
    def _name(self) -> str:
        return f"'{self._label}'" if self._label else f"(a {type(self).__name__} without a label)"


_never_released: list[NSObject] = []


def over_retained(thing: NSObject) -> NSObject:
    """What a `new...` method returns: with bridges before pyobjc-core 12.2.3 it has one owner too many, for ever."""
    if settings.current().over_retain:
        thing._over_retained = True  # type: ignore[attr-defined]
        _never_released.append(thing)
    return thing


def forget_objects() -> None:
    """Release what was over-retained: for the next test."""
    _never_released.clear()


class Labelled(NSObject):
    """An object with a label, by which reports name it."""

    _allocation: Allocation | None = None

    @selector(gives="@")
    def label(self) -> str | None:
        return self._label

    @selector("@")
    def setLabel_(self, label: str | None) -> None:
        self._label = label
        if self._allocation is not None:
            self._allocation.label = label
