"""What is shown of an answer while it comes: everything on a terminal, the answer alone in a pipe.

Promises that a text goes out as it comes and is never wrapped or changed, but for control characters and colours on a
terminal; into a pipe it goes byte for byte. Remarks are for the person: on a terminal between the answers, else on
stderr.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TextIO

from ...manifests.console import say
from ..answers.events import CallArguments, CallBegan, CallEnded, Content, Event, Malformed, Thinking
from .markdown import BOLD, DIM, RESET, Styler, visible


class Screen(Protocol):
    """Where a conversation is shown."""

    fold: bool  # thinking is counted, not shown

    def show(self, events: Iterable[Event]) -> None:
        """More of an answer."""

    def end(self) -> None:
        """The answer is over."""

    def note(self, text: str) -> None:
        """A remark."""


class Pipe:
    """Answers only. A call is one line of JSON."""

    fold = False

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._line_open = False
        self._call = ""

    def show(self, events: Iterable[Event]) -> None:
        """See Screen."""
        for event in events:
            match event:
                case Content(text):
                    self._write(text)
                case CallBegan(_, name):
                    self._call = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
                case CallArguments(_, text):
                    self._call += text
                case CallEnded():
                    self.end()
                    self._write(self._call + "}\n")
                case Malformed(_, _, why):
                    say(f"a call could not be read: {visible(why)}")
        self._out.flush()

    def end(self) -> None:
        """See Screen."""
        if self._line_open:
            self._write("\n")
        self._out.flush()

    def note(self, text: str) -> None:
        """See Screen."""
        say(text)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._line_open = not text.endswith("\n")


@dataclass
class Looks:
    """What a terminal can do: `colours`, and `lines` that are written over."""

    colours: bool
    lines: bool


class Terminal:
    """Everything, thinking dimmed or counted."""

    def __init__(self, out: TextIO, looks: Looks, *, fold: bool = False) -> None:
        self.fold = fold
        self._out, self._looks = out, looks
        self._styler = Styler()
        self._part: type[Event] | None = None  # what was shown last
        self._column_open = False
        self._thought = 0

    def show(self, events: Iterable[Event]) -> None:
        """See Screen."""
        for event in events:
            match event:
                case Thinking(text):
                    self._think(text)
                case Content(text):
                    self._turn(Content)
                    self._write(self._styler.push(text) if self._looks.colours else visible(text))
                case CallBegan(_, name):
                    self._turn(CallBegan)
                    self._write(f"{self._styled(BOLD, f'calls {visible(name)}')} ")
                case CallArguments(_, text):
                    self._write(visible(text))
                case CallEnded():
                    self._turn(None)
                case Malformed(_, text, why):
                    self._turn(None)
                    self.note(f"a call could not be read: {why}: {text!r:.200}")
        self._out.flush()

    def end(self) -> None:
        """See Screen."""
        self._turn(None)
        self._out.flush()

    def note(self, text: str) -> None:
        """See Screen."""
        self._line()
        self._write(f"{self._styled(DIM, visible(text))}\n")
        self._out.flush()

    def _think(self, text: str) -> None:
        if self._part is not Thinking:
            self._turn(Thinking)
            self._thought = 0
            if not self._looks.colours and not self.fold:
                self._write("[thinking]\n")
        self._thought += len(text)
        if not self.fold:
            self._write(self._styled(DIM, visible(text)))
        elif self._looks.lines:
            self._write(f"\r{self._styled(DIM, f'thinking: {self._thought} characters')}")

    def _turn(self, to: type[Event] | None) -> None:
        """Leave one part of an answer for another."""
        if self._part is to and to is not CallBegan:
            return
        if self._part is Content:
            self._write(self._styler.finish())
            self._styler = Styler()
        if self._part is Thinking:
            self._close_thinking()
        self._part = to
        self._line()

    def _close_thinking(self) -> None:
        if self.fold:
            line = f"thought: {self._thought} characters; /think show shows them"
            self._write(("\r" if self._looks.lines else "") + self._styled(DIM, line))
        elif self._looks.colours:
            self._write("\n")
        else:
            self._line()
            self._write("[answer]")

    def _line(self) -> None:
        if self._column_open:
            self._write("\n")

    def _styled(self, style: str, text: str) -> str:
        return f"{style}{text}{RESET}" if self._looks.colours and text else text

    def _write(self, text: str) -> None:
        self._out.write(text)
        bare = text.removesuffix(RESET)
        if bare:
            self._column_open = not bare.endswith("\n")
