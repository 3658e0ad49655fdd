"""OpenAI's /v1/completions: a bare text to be continued."""

import secrets
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from ..answers.events import Content
from ..serving.answer import Began, Ended, Likelihood, Said
from ..tokenizer import Tokenizer
from . import fields, likelihoods, shape
from .chat import StreamOptions, usage
from .failures import ApiError, unsupported
from .wishes import Ask, Wish

MOST_LOGPROBS = 5


class CompletionRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The fields that OpenAI documents, and top_k, min_p and repetition_penalty."""

    model: str
    prompt: str | list[str | int | list[int]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: int | None = None
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: Any = None  # without an effect here


def prompt(request: CompletionRequest) -> str | list[int]:
    """The one text, or its tokens."""
    given = request.prompt
    if isinstance(given, list) and len(given) == 1 and not isinstance(given[0], int):
        given = given[0] if isinstance(given[0], str) else list(given[0])
    if isinstance(given, str):
        return given
    tokens = [token for token in given if isinstance(token, int)]
    if len(tokens) < len(given):
        raise unsupported("prompt", "this server continues one text at a time")
    return tokens


def wish(request: CompletionRequest) -> Wish:
    """How it is to be continued. Raises ApiError for what is malformed or not supported."""
    for name in ("n", "best_of"):
        if getattr(request, name) not in (None, 1):
            raise unsupported(name, "this server gives one answer; leave it out or ask again")
    neutral = ("echo", "suffix")
    fields.neutral(**{name: getattr(request, name) for name in neutral})
    if request.logprobs is not None and not 0 <= request.logprobs <= MOST_LOGPROBS:
        raise ApiError(f"logprobs: {request.logprobs} is not between 0 and {MOST_LOGPROBS}", param="logprobs")
    longest = fields.limit("max_tokens", request.max_tokens)
    stops, penalties = fields.stops("stop", request.stop), fields.penalties(request)
    return Wish(fields.sampling(request), longest, stops, request.logprobs, penalties)


class CompletionShape:
    """See shape.Shape."""

    def __init__(self, model: str, ask: Ask, request: CompletionRequest, tokenizer: Tokenizer) -> None:
        self._ask = ask
        self._usage_wanted = bool(request.stream_options and request.stream_options.include_usage)
        self._head = {"id": f"cmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._text: list[str] = []
        self._found: list[Likelihood] = []
        self._streamed, self._whole = likelihoods.Legacy(tokenizer), likelihoods.Legacy(tokenizer)
        self._cached = 0
        self._end = Ended("interrupted", None, 0)

    def began(self, part: Began) -> Iterator[shape.Event]:
        """Nothing yet."""
        self._cached = part.cached
        yield from ()

    def said(self, part: Said) -> Iterator[shape.Event]:
        """A chunk."""
        text = "".join(event.text for event in part.events if isinstance(event, Content))
        self._text.append(text)
        logprobs = None
        if part.likelihood is not None:
            self._found.append(part.likelihood)
            logprobs = self._streamed.columns([part.likelihood])
        if text or logprobs:
            yield self._chunk(text, logprobs)

    def ended(self, part: Ended) -> Iterator[shape.Event]:
        """The reason, the usage if it was asked for, and the end."""
        self._end = part
        yield self._chunk("", finish=part.finish)
        if self._usage_wanted:
            yield shape.Event({**self._document([]), "usage": self._usage()})
        yield shape.Event("[DONE]")

    def failed(self, error: ApiError) -> Iterator[shape.Event]:
        """OpenAI's clients raise what has an `error`."""
        yield shape.Event(error.document(""))

    def document(self) -> dict[str, Any]:
        """A text_completion."""
        choice = {"index": 0, "text": "".join(self._text), "finish_reason": self._end.finish}
        choice["logprobs"] = None if self._ask.top_logprobs is None else self._whole.columns(self._found)
        return {**self._document([choice]), "usage": self._usage()}

    def _chunk(self, text: str, logprobs: Any = None, finish: str | None = None) -> shape.Event:
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}
        chunk = self._document([choice])
        return shape.Event({**chunk, "usage": None} if self._usage_wanted else chunk)

    def _document(self, choices: list[Any]) -> dict[str, Any]:
        return {"object": "text_completion", **self._head, "choices": choices}

    def _usage(self) -> dict[str, Any]:
        return usage(len(self._ask.tokens), self._cached, self._end.tokens)
