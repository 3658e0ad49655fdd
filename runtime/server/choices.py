"""What OpenAI's chats and completions have in common: several answers as chunks with an index, or in one document.

Owns the chunks' frame, their usage and their end. Knows no choice's inside, and neither protocol's request.
"""

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from ..serving.answer import Began, Ended, Said
from . import shape
from .failures import ApiError
from .wishes import Ask


class Choice(Protocol):
    """One answer: its chunks' choices, and its own in the document."""

    end: Ended | None

    @property
    def kept(self) -> int:
        """See shape.Shape."""

    def began(self) -> Iterable[dict[str, Any]]:
        """What comes first, if anything."""

    def said(self, part: Said) -> Iterable[dict[str, Any]]:
        """What a part says, if anything."""

    def ended(self, part: Ended) -> dict[str, Any]:
        """The reason."""

    def document(self) -> dict[str, Any]:
        """All of it."""


class ChoicesShape:
    """See shape.Shape. Chunks of several answers come as their tokens do. `prefix`: of the id.

    There are as many choices to each of the `asks`, which are alike, one ask's after the other's.
    """

    kind: str
    chunk_kind: str

    def __init__(self, prefix: str, model: str, asks: Sequence[Ask], choices: Sequence[Choice], *, usage: bool) -> None:
        self._asks, self._choices, self._usage_wanted = asks, choices, usage
        self._head = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._cached = 0

    def began(self, part: Began) -> Iterator[shape.Event]:
        """The first chunk, if there is one yet."""
        if part.index % self._asks[0].choices == 0:  # a prompt's other choices find what the first computes
            self._cached += part.cached
        yield from map(self._chunk, self._choices[part.index].began())

    def said(self, part: Said) -> Iterator[shape.Event]:
        """Chunks."""
        yield from map(self._chunk, self._choices[part.index].said(part))

    def ended(self, part: Ended) -> Iterator[shape.Event]:
        """The reason; after the last the usage if it was asked for, and the end."""
        yield self._chunk(self._choices[part.index].ended(part))
        if any(choice.end is None for choice in self._choices):
            return
        if self._usage_wanted:
            yield shape.Event({**self._document(self.chunk_kind, []), "usage": self._usage()})
        yield shape.Event("[DONE]")

    def failed(self, error: ApiError) -> Iterator[shape.Event]:
        """OpenAI's clients raise what has an `error`."""
        yield shape.Event(error.document(""))

    @property
    def kept(self) -> int:
        """See shape.Shape."""
        return sum(choice.kept for choice in self._choices)

    def document(self) -> dict[str, Any]:
        """All answers, whole."""
        choices = [{**choice.document(), "index": index} for index, choice in enumerate(self._told())]
        return {**self._document(self.kind, choices), "usage": self._usage()}

    def _told(self) -> Sequence[Choice]:
        """The choices that are in the document."""
        return self._choices

    def _chunk(self, choice: dict[str, Any]) -> shape.Event:
        chunk = self._document(self.chunk_kind, [choice])
        return shape.Event({**chunk, "usage": None} if self._usage_wanted else chunk)

    def _document(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {"object": kind, **self._head, "choices": choices}

    @property
    def _ends(self) -> list[Ended]:
        return [choice.end for choice in self._choices if choice.end is not None]

    def _usage(self) -> dict[str, Any]:
        """As OpenAI counts: each prompt once, and the answers that are not told, too."""
        prompt, answer = sum(len(ask.tokens) for ask in self._asks), sum(end.tokens for end in self._ends)
        counted = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
        return {**counted, "prompt_tokens_details": {"cached_tokens": self._cached}}
