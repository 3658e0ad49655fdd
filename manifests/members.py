"""JSON objects too large to be held whole: their members one by one, each as strict as `canonical` is.

Memory is a window of the text and the member at hand. Whoever reads must see to repeated keys, which only a reader
that keeps the members can.
"""

import codecs
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from . import canonical
from .errors import CorruptInputError

PIECE_BYTES = 1024 * 1024  # what a reader should give at a time
MAX_MEMBER = 1024 * 1024  # characters of a key and its value
_SPACE = re.compile(r"[ \t\n\r]*")


def members(
    content: Iterable[bytes | memoryview], name: str, *, inside: Collection[str] = ()
) -> Iterator[tuple[str, str, Any]]:
    """(outer, key, value) of the members of the object whose JSON is `content`, in pieces, in order.

    `outer` is "" unless the member lies in an object that is itself the value of a key in `inside`; such a value is
    never held whole. Raises CorruptInputError that names the source, `name`, for anything that is no such object.
    """
    window = _Window(iter(content))
    try:
        yield from _object(window, "", inside)
        window.fill(1)
        if window.left():
            raise ValueError("there is more behind the last brace")
    except RecursionError as error:
        raise CorruptInputError(f"{name} is not acceptable JSON: it is nested too deeply") from error
    except ValueError as error:
        raise CorruptInputError(f"{name} is not acceptable JSON: {error!s:.300}") from error


class _Window:
    """The text that is being read: `at` is the next character of `text`."""

    def __init__(self, pieces: Iterator[bytes | memoryview]) -> None:
        self.text, self.at = "", 0
        self._pieces = pieces
        self._decoder: codecs.IncrementalDecoder | None = codecs.getincrementaldecoder("utf-8")()

    def fill(self, wanted: int) -> None:
        """Skip white space, and make sure of `wanted` characters unless the file ends before."""
        self.skip()
        while self._decoder and len(self.text) - self.at < wanted:
            piece = next(self._pieces, None)
            more = self._decoder.decode(bytes(piece or b""), final=piece is None)
            self.text, self.at = self.text[self.at :] + more, 0
            if piece is None:
                self._decoder = None
            self.skip()

    def skip(self) -> None:
        """Go to the next character that is no white space."""
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def left(self) -> bool:
        """Whether any of the text is left."""
        return self.at < len(self.text)

    def take(self, allowed: str) -> str:
        """The next character, which must be one of `allowed`; white space around it is skipped."""
        self.skip()
        found = self.text[self.at : self.at + 1]
        if not found or found not in allowed:
            raise ValueError(f"{found!r} stands where one of {allowed} is expected")
        self.at += 1
        self.skip()
        return found


def _object(window: _Window, outer: str, inside: Collection[str]) -> Iterator[tuple[str, str, Any]]:
    window.fill(MAX_MEMBER)
    window.take("{")
    if window.text[window.at : window.at + 1] == "}":
        window.take("}")
        return
    while True:
        window.fill(MAX_MEMBER)
        begun = window.at
        key = _decoded(window)
        if not isinstance(key, str):
            raise ValueError(f"{key!r:.100} stands where a key is expected")
        window.take(":")
        if key in inside and window.text[window.at : window.at + 1] == "{":
            yield from _object(window, key, ())
            window.fill(1)
        else:
            value = _decoded(window)
            if window.at - begun > MAX_MEMBER:
                raise ValueError(f"{key!r:.100} has a value of more than {MAX_MEMBER} characters")
            yield outer, key, value
            window.fill(1)
        if window.take(",}") == "}":
            return


def _decoded(window: _Window) -> Any:
    value, window.at = canonical.DECODER.raw_decode(window.text, window.at)
    canonical.check_value(value)
    return value
