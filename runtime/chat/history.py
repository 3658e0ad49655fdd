"""What was typed before, in a file of one JSON text a line, where the user alone can read it (mode 0600).

Promises never to keep more than so many lines, and that a file which is damaged, or cannot be written, ends no chat.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from ...layout import atomic
from ...manifests.console import say
from ...manifests.errors import MoepackError
from ...manifests.files import read_small

MOST_LINES = 1000
MOST_BYTES = 8 * 1024 * 1024
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
        except (MoepackError, OSError) as error:
            say(f"what you type is not kept: {error}")

    def add(self, text: str) -> None:
        """Keep a line."""
        self.lines.append(text)
        line = json.dumps(text).encode() + b"\n"
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
        atomic.make_folders(path.parent)
        content = read_small(path, MOST_BYTES, follow_links=True) if path.exists() else b""
        self.lines = [text for line in content.splitlines() if (text := _text(line))]
        if len(self.lines) > 2 * MOST_LINES:
            self.lines = self.lines[-MOST_LINES:]
            kept = "".join(json.dumps(text) + "\n" for text in self.lines)
            atomic.replace(path.resolve(), kept.encode(), atomic.PRIVATE)
        self._file = atomic.AppendedFile(path, atomic.PRIVATE)


def _text(line: bytes) -> str | None:
    """A line's text; None for one that is damaged."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, str) else None
