"""Logprobs as OpenAI writes them. Tokens are shown as their own texts; bytes are null where one is half a character."""

import math
from typing import Any

import msgspec

from ..serving.answer import Likelihood, Scored
from ..tokenizer import REPLACEMENT, Tokenizer

COLUMNS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def entry(found: Likelihood, tokenizer: Tokenizer) -> msgspec.Raw:
    """As in chats and responses; JSON takes a quarter of the memory of what it says."""
    top = [_one(token, logprob, tokenizer) for token, logprob in found.top]
    return msgspec.Raw(msgspec.json.encode({**_one(found.token, found.logprob, tokenizer), "top_logprobs": top}))


def _one(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    text = tokenizer.decode([token], special=True)
    return {"token": text, "logprob": logprob, "bytes": None if REPLACEMENT in text else list(text.encode())}


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
    """As in completions: columns, and where each token's text begins; `all` has those so far, if they are `kept`."""

    def __init__(self, tokenizer: Tokenizer, *, kept: bool) -> None:
        self._tokenizer, self._kept = tokenizer, kept
        self._offset = 0
        self.all: dict[str, list[Any]] = {name: [] for name in COLUMNS}

    def prompt(self, part: Scored) -> dict[str, list[Any]]:
        """Columns for a prompt: nothing says how likely its first token was."""
        return self._columns([self._row(part.first, None, None), *map(self._found, part.found)])

    def columns(self, found: list[Likelihood]) -> dict[str, list[Any]]:
        """Columns for the next tokens."""
        return self._columns(list(map(self._found, found)))

    def _found(self, found: Likelihood) -> tuple[Any, ...]:
        top: dict[str, float] = {}
        for token, logprob in found.top:
            top.setdefault(self._text(token), logprob)  # of several with the same text, such as halves of characters
        return self._row(found.token, found.logprob, top)

    def _row(self, token: int, logprob: float | None, top: dict[str, float] | None) -> tuple[Any, ...]:
        text, offset = self._text(token), self._offset
        self._offset += len(text)
        return text, logprob, top, offset

    def _columns(self, rows: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
        columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
        for name in COLUMNS if self._kept else ():
            self.all[name] += columns[name]
        return columns

    def _text(self, token: int) -> str:
        return self._tokenizer.decode([token], special=True)
