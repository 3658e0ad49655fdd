"""Where a person's lines come from: prompt_toolkit on a terminal that can edit, plain lines elsewhere.

A line may have line ends in it: pasted ones, and those of Alt-Enter or Ctrl-J. Ctrl-C empties the line, and raises
KeyboardInterrupt where it is empty; Ctrl-D raises EOFError there. Knows no command but by name.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Protocol, TextIO

from ...manifests.errors import UsageError
from ..prompt import MAX_MESSAGES_BYTES
from .history import History


class Keyboard(Protocol):
    """Where lines come from."""

    def read(self, prompt: str, *, kept: bool = True) -> str:
        """The next; raises EOFError after the last. `kept`: it belongs in the history."""


class Lines:
    """Standard input, line by line; `prompts` is where the prompt is shown, if anywhere."""

    def __init__(self, prompts: TextIO | None = None) -> None:
        self._prompts = prompts
        self._within = False  # a line whose beginning was too long

    def read(self, prompt: str, *, kept: bool = True) -> str:
        """See Keyboard. Raises UsageError for a line that is too long or no text."""
        line = b""
        try:
            self._write(prompt)  # a Ctrl-C may come as soon as it is seen
            while self._within:
                self._piece()
            line = self._piece()
        finally:
            if not line.endswith(b"\n"):  # Ctrl-C or Ctrl-D, which leave the cursor where it is
                self._write("\n")
        if len(line) > MAX_MESSAGES_BYTES:
            raise UsageError(f"a line has more than {MAX_MESSAGES_BYTES} bytes; give a shorter one")
        if not line:
            raise EOFError
        try:
            return line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UsageError("a line of standard input is not UTF-8 text") from error

    def _piece(self) -> bytes:
        """The next line, or as much of it as is already too long."""
        piece = sys.stdin.buffer.readline(MAX_MESSAGES_BYTES + 1)
        self._within = len(piece) > MAX_MESSAGES_BYTES and not piece.endswith(b"\n")
        return piece

    def _write(self, text: str) -> None:
        if self._prompts is not None:
            self._prompts.write(text)
            self._prompts.flush()


def editor(history: History, commands: Mapping[str, str], status: Callable[[], str]) -> Keyboard | None:
    """A line editor with completion of `commands`, which say what each takes; None without prompt_toolkit."""
    try:
        from .editor import Editor
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("prompt_toolkit", "wcwidth"):
            raise
        return None
    return Editor(history, commands, status)
