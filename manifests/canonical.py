"""Canonical JSON (RFC 8785), and strict decoding of any JSON we did not write ourselves.

One value has one rendering, so the digest of a manifest's bytes is the digest of what it says. Decoding refuses what
two readers could read differently: duplicate keys, NaN and Infinity, and nesting that a parser may not survive.
"""

import json
from typing import Any

import msgspec
import rfc8785

from .errors import CorruptInputError


def encode(value: Any) -> bytes:
    """The canonical bytes of a JSON value or of a msgspec Struct. Raises ValueError for NaN and integers over 2^53."""
    return rfc8785.dumps(msgspec.to_builtins(value))


def decode(content: bytes, name: str) -> Any:
    """The JSON value in `content`, strictly. Raises CorruptInputError that names the source, `name`, and the fault."""
    try:
        text = content.decode("utf-8")
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise CorruptInputError(f"{name} is not acceptable JSON: it is nested too deeply") from error
    except ValueError as error:  # bad UTF-8, bad JSON and numbers of thousands of digits alike
        raise CorruptInputError(f"{name} is not acceptable JSON: {error}") from error


def check_canonical(value: Any, content: bytes, name: str) -> None:
    """Raise CorruptInputError unless `content` is exactly the canonical rendering of the decoded `value`."""
    try:
        canonical = rfc8785.dumps(value)
    except (ValueError, RecursionError) as error:
        raise CorruptInputError(f"{name} is not canonical JSON: {error}") from error
    if canonical != content:
        raise CorruptInputError(f"{name} is not canonical JSON (RFC 8785): it was edited, or not written by moe-pack")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {name!r} appears twice")
        found[name] = value
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")
