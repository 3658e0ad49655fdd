"""Logprobs as OpenAI writes them. Tokens are shown as their own texts; bytes are null where one is half a character.

What is kept until an answer's end is kept as JSON, which takes a quarter of the memory of what it says.
"""

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from ..serving.answer import Likelihood, Scored
from ..tokenizer import REPLACEMENT, Tokenizer

COLUMNS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
ENTRY_BYTES = 350  # of a bytes object and what has it, of its token's text, and of what comes and goes meanwhile
DOCUMENT = 2  # while it grows, JSON takes up to twice its bytes


def entry(found: Likelihood, tokenizer: Tokenizer) -> msgspec.Raw:
    """As in chats and responses."""
    top = [_one(token, logprob, tokenizer) for token, logprob in found.top]
    return msgspec.Raw(msgspec.json.encode({**_one(found.token, found.logprob, tokenizer), "top_logprobs": top}))


def _one(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    text = tokenizer.decode([token], special=True)
    return {"token": text, "logprob": logprob, "bytes": None if REPLACEMENT in text else list(text.encode())}


def size(entries: Iterable[msgspec.Raw]) -> int:
    """Bytes of memory for these, and for a document that has them, too."""
    return sum((1 + DOCUMENT) * memoryview(each).nbytes + ENTRY_BYTES for each in entries)


class Mean:
    """Of logprobs, to compare answers of different lengths by; none are less than any."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, found: Likelihood) -> None:
        """A token's."""
        self._sum += found.logprob
        self._count += 1

    @property
    def value(self) -> float:
        """Of those so far."""
        return self._sum / self._count if self._count else -math.inf


class Legacy:
    """As in completions: columns, and where each token's text begins."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0

    def prompt(self, part: Scored) -> dict[str, list[Any]]:
        """Columns for a prompt: nothing says how likely its first token was."""
        return _columns([self._row(part.first, None, None), *map(self._found, part.found)])

    def columns(self, found: list[Likelihood]) -> dict[str, list[Any]]:
        """Columns for the next tokens."""
        return _columns(list(map(self._found, found)))

    def _found(self, found: Likelihood) -> tuple[Any, ...]:
        top: dict[str, float] = {}
        for token, logprob in found.top:
            top.setdefault(self._text(token), logprob)  # of several with the same text, such as halves of characters
        return self._row(found.token, found.logprob, top)

    def _row(self, token: int, logprob: float | None, top: dict[str, float] | None) -> tuple[Any, ...]:
        text, offset = self._text(token), self._offset
        self._offset += len(text)
        return text, logprob, top, offset

    def _text(self, token: int) -> str:
        return self._tokenizer.decode([token], special=True)


def _columns(rows: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))


class Columns:
    """Those of a completion, so far."""

    def __init__(self) -> None:
        self._parts = {name: bytearray() for name in COLUMNS}

    def add(self, more: dict[str, list[Any]]) -> None:
        """The next ones."""
        for name, part in self._parts.items():
            part += b"," * bool(part) + msgspec.json.encode(more[name])[1:-1]

    @property
    def size(self) -> int:
        """Bytes of memory for these, which may have room for more, the text, a copy and a document that has both."""
        return (4 + DOCUMENT) * sum(map(len, self._parts.values()))

    def document(self) -> dict[str, msgspec.Raw]:
        """All of them."""
        return {name: msgspec.Raw(b"[" + part + b"]") for name, part in self._parts.items()}
