"""An answer as consecutive blocks: thinking, text, calls; a block ends where another kind begins.

`WholeCalls` is for protocols whose clients take what there is of a call for all of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ..answers.events import CallArguments, CallBegan, CallEnded, Content, Event, Malformed, Thinking

Kind = Literal["thinking", "text", "call"]
Change = Literal["opened", "grown", "closed"]


@dataclass
class Block:
    """`number` counts blocks, `call` calls; a call has a `name`, and is `whole` once it ended.

    `cut`: the answer reached its limit within it.
    """

    kind: Kind
    number: int
    name: str = ""
    call: int = 0
    whole: bool = False
    cut: bool = False
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it; of a call, its arguments."""
        return "".join(self.pieces)


class Blocks:
    """`take` events, then `close`; each gives what changed, with the text that is new."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None

    def take(self, event: Event) -> Iterator[tuple[Change, Block, str]]:
        """What an event changes."""
        match event:
            case Thinking(text):
                yield from self._grow("thinking", text)
            case Content(text):
                yield from self._grow("text", text)
            case CallBegan(index, name):
                yield from self._begin(Block("call", len(self.all), name, index))
            case CallArguments(_, text):
                yield from self._grow("call", text)
            case CallEnded() | Malformed():
                if self._open is not None and self._open.kind == "call":
                    self._open.whole = isinstance(event, CallEnded)
                    yield from self.close()

    def close(self) -> Iterator[tuple[Change, Block, str]]:
        """The last block ends."""
        if self._open is not None:
            yield "closed", self._open, ""
        self._open = None

    def _begin(self, block: Block) -> Iterator[tuple[Change, Block, str]]:
        yield from self.close()
        self.all.append(block)
        self._open = block
        yield "opened", block, ""

    def _grow(self, kind: Kind, text: str) -> Iterator[tuple[Change, Block, str]]:
        if self._open is None or self._open.kind != kind:
            yield from self._begin(Block(kind, len(self.all)))
        assert self._open is not None
        self._open.pieces.append(text)
        yield "grown", self._open, text


class WholeCalls:
    """Holds a call back until it is whole; one that is cut or malformed is never told."""

    def __init__(self) -> None:
        self._held: list[Event] = []

    def take(self, event: Event) -> list[Event]:
        """What can be told with an event."""
        match event:
            case CallBegan() | CallArguments():
                self._held.append(event)
                return []
            case CallEnded():
                told, self._held = [*self._held, event], []
                return told
            case Malformed():
                self._held = []
        return [event]
