"""Canonical JSON (RFC 8785), and strict decoding of any JSON we did not write ourselves.

One value has one rendering, so the digest of a manifest's bytes is the digest of what it says. Decoding refuses what
two readers could read differently (duplicate keys, numbers that are not finite, halves of surrogate pairs), nesting
that some parser may not survive, and, before anything is built of it, what would take too much memory or time.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import msgspec
import rfc8785

from .errors import CorruptInputError


def encode(value: Any) -> bytes:
    """The canonical bytes of a JSON value or of a msgspec Struct. Raises ValueError for NaN and integers over 2^53."""
    return rfc8785.dumps(msgspec.to_builtins(value))


@dataclass(frozen=True)
class Limits:
    """The most that is decoded: bytes; values, counted by commas and opening brackets, also those in texts; and the
    bytes of the decoded text, in which one rare character makes all of them wide.
    """

    size: int
    values: int
    text: int


FOREIGN = Limits(4 * 1024 * 1024, 2**17, 16 * 1024 * 1024)  # what strangers wrote: within 64 MiB and two seconds
OWN = Limits(64 * 1024 * 1024, 2**22, 256 * 1024 * 1024)  # what the user wrote, and may make long
MAX_DEPTH = 64
WIDE = b"\xf0"  # where UTF-8's sequences for characters of four bytes begin


def decode(content: bytes, name: str, limits: Limits = FOREIGN) -> Any:
    """The JSON value in `content`, strictly. Raises CorruptInputError that names the source, `name`, and the fault."""
    _check_limits(content, name, limits)
    try:
        value = DECODER.decode(_text(content))
        check_value(value)
        return value
    except RecursionError as error:
        raise CorruptInputError(f"{name} is not acceptable JSON: it is nested more than {MAX_DEPTH} deep") from error
    except ValueError as error:  # bad UTF-8, bad JSON and numbers of thousands of digits alike
        raise CorruptInputError(f"{name} is not acceptable JSON: {error!s:.300}") from error


def check_value(value: Any, depth: int = MAX_DEPTH) -> None:
    """Raise ValueError for a decoded value that is nested deeper than `depth`, or a text that has no UTF-8 form."""
    if type(value) is str:
        if not value.isascii():
            value.encode("utf-8")
    elif type(value) in (list, dict):
        if not depth:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        for part in value:
            check_value(part, depth - 1)
        for part in value.values() if type(value) is dict else ():
            check_value(part, depth - 1)


def check_canonical(value: Any, content: bytes, name: str) -> None:
    """Raise CorruptInputError unless `content` is exactly the canonical rendering of the decoded `value`."""
    try:
        canonical = rfc8785.dumps(value)
    except (ValueError, RecursionError) as error:
        raise CorruptInputError(f"{name} is not canonical JSON: {error!s:.300}") from error
    if canonical != content:
        raise CorruptInputError(f"{name} is not canonical JSON (RFC 8785): it was edited, or not written by moe-pack")


def _check_limits(content: bytes, name: str, limits: Limits) -> None:
    if len(content) > limits.size:
        raise CorruptInputError(f"{name} has {len(content)} bytes; at most {limits.size} are allowed")
    if sum(map(content.count, (b",", b"[", b"{"))) > limits.values:
        raise CorruptInputError(f"{name} has more than {limits.values} values")
    if len(content) * 4 > limits.text and len(content) * _width(content) > limits.text:
        raise CorruptInputError(f"{name} has {len(content)} bytes, of characters too rare for so long a text")


def _width(content: bytes) -> int:
    """Bytes that each character of the decoded text takes, at most."""
    return 1 if content.isascii() else 4 if max(content) >= WIDE[0] else 2


def _text(content: bytes) -> str:
    text = content.decode("utf-8")
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark")
    return text


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.40} is beyond all floating-point numbers")
    return number


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {name!r:.100} appears twice")
        found[name] = value
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


DECODER = json.JSONDecoder(
    object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant, parse_float=_finite
)  # every document of ours that is not streamed is decoded by it
