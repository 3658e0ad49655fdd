"""One request as the batch sees it: tokens to begin with, and something that makes a token of logits.

Knows no text and no client; whoever answers does.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..backends.base import Floats

log = logging.getLogger("moepack.server")


class Answering(Protocol):
    """Whom an answer goes to, token by token. Called by the thread that computes, which waits meanwhile."""

    def begin(self, cached: int) -> None:
        """Computing begins; so many tokens of the prompt need not be computed."""

    def next(self, logits: Floats) -> int | None:
        """The next token for float32 logits [vocab]; None if the answer has ended, which was told to whom it concerns.

        What it raises ends this request alone, and is given to `fail`.
        """

    def fail(self, error: Exception) -> None:
        """No more tokens will be asked for, because of this."""


@dataclass(eq=False)
class Request:
    """A prompt of at least one token, and its answer. `marks`: positions in the prompt that are worth remembering.

    Whoever asked may set `cancelled` at any time: then it ends before its next token. With `read` nothing of the prompt
    is taken from what is remembered, so that all its tokens' logits are shown; see engine.Turn. `client`: whose it is;
    clients take turns.
    """

    prompt: Sequence[int]
    answer: Answering
    marks: frozenset[int] = field(default_factory=frozenset)
    cancelled: bool = False
    read: Callable[[Floats], None] | None = None
    client: str = ""

    def fail(self, error: Exception) -> None:
        """Tell its answer, whatever comes of that: others are to be told, too."""
        try:
            self.answer.fail(error)
        except Exception:
            log.exception("an answer could not be told that it failed")
