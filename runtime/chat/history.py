"""What was typed before, in a file of one JSON text a line, where the user alone can read it (mode 0600).

Promises that a run finds the newest lines, so many and so many bytes at most, and that a file which is damaged, too
long, or cannot be written, ends no chat. A link to the file stays a link.
"""

import json
import os
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from ...layout import atomic
from ...manifests.console import say
from ...manifests.errors import CorruptInputError, MoepackError
from ...manifests.files import open_regular, read_exactly

MOST_LINES = 1000  # a file is cut to so many, and bytes, once it has twice as many
MOST_BYTES = 4 * 1024 * 1024
MOST_OF_ONE = 64 * 1024  # bytes; a longer text was pasted, and is in its own file


def default_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Where programs keep such things by the XDG specification; on macOS, too."""
    given = environment.get("XDG_STATE_HOME", "")
    state = Path(given) if given.startswith("/") else Path.home() / ".local" / "state"
    return state / "moepack" / "chat_history"


class History:
    """The lines of a file, oldest first; without a path, of this run alone."""

    def __init__(self, path: Path | None) -> None:
        self.lines: list[str] = []
        self._file: atomic.AppendedFile | None = None
        if path is None:
            return
        try:
            self._open(path)
        except (MoepackError, OSError, RuntimeError) as error:  # the last is a link's that leads to itself
            say(f"what you type is not kept: {error}")

    def add(self, text: str) -> None:
        """Keep a line."""
        self.lines.append(text)
        line = _line(text)
        if self._file is None or len(line) > MOST_OF_ONE:
            return
        try:
            self._file.append(line)
        except MoepackError as error:
            say(f"what you type is not kept from here on: {error}")
            self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, path: Path) -> None:
        path = path.resolve()
        atomic.make_folders(path.parent)
        content, whole = _tail(path, 2 * MOST_BYTES) if path.exists() else (b"", True)
        self.lines = [text for line in content.splitlines() if len(line) < MOST_OF_ONE and (text := _text(line))]
        if not whole and not self.lines:
            raise CorruptInputError(f"{path} is no history, for its last {len(content)} bytes have no line of one")
        if len(self.lines) > 2 * MOST_LINES or not whole:
            self.lines = _newest(self.lines)
            atomic.replace(path, b"".join(map(_line, self.lines)), atomic.PRIVATE)
        self._file = atomic.AppendedFile(path, atomic.PRIVATE)


def _tail(path: Path, most: int) -> tuple[bytes, bool]:
    """The whole lines in the last `most` bytes of a file, and whether they are all of it."""
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        content = bytearray(min(size, most))
        read_exactly(descriptor, memoryview(content), size - len(content), path)
    finally:
        os.close(descriptor)
    whole = size <= most
    return bytes(content if whole else content[content.find(b"\n") + 1 :]), whole


def _newest(lines: Sequence[str]) -> list[str]:
    """As many of the last lines as a file is cut to."""
    sizes = accumulate(len(_line(text)) for text in reversed(lines))
    count = sum(size <= MOST_BYTES for size in sizes)
    return list(lines[-min(count, MOST_LINES) :])


def _line(text: str) -> bytes:
    return json.dumps(text).encode() + b"\n"


def _text(line: bytes) -> str | None:
    """A line's text; None for one that is damaged."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, str) else None
