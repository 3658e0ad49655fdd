"""OpenAI's /v1/completions: a bare text to be continued."""

from collections.abc import Iterator
from typing import Any

import msgspec

from ..answers.events import Content
from ..serving.answer import Ended, Said
from ..tokenizer import Tokenizer
from . import fields, likelihoods
from .chat import StreamOptions
from .choices import ChoicesShape
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
    choices = fields.choices(request.n)
    if request.best_of not in (None, choices):
        raise unsupported("best_of", "this server gives all answers that it computes; leave it out or make it n")
    if request.suffix:
        raise unsupported("suffix", "this model fills in nothing before a text; leave it out")
    if request.logprobs is not None and not 0 <= request.logprobs <= MOST_LOGPROBS:
        raise ApiError(f"logprobs: {request.logprobs} is not between 0 and {MOST_LOGPROBS}", param="logprobs")
    if request.echo and request.logprobs is not None and choices > 1:
        raise ApiError("n: with echo and logprobs there is one answer; ask for more without echo", param="n")
    nothing = bool(request.echo) and request.max_tokens == 0
    longest = None if nothing else fields.limit("max_tokens", request.max_tokens)
    return Wish(
        fields.sampling(request),
        longest,
        fields.stops("stop", request.stop),
        request.logprobs,
        fields.penalties(request),
        choices,
        echo=bool(request.echo),
        nothing=nothing,
    )


class _Choice:
    """One text: its chunks' choices, and its own in the document."""

    def __init__(self, index: int, ask: Ask, tokenizer: Tokenizer) -> None:
        self._index, self._ask = index, ask
        self._text: list[str] = []
        self._logprobs = likelihoods.Legacy(tokenizer)
        self.end: Ended | None = None

    def began(self) -> Iterator[dict[str, Any]]:
        """The prompt, where it is wanted."""
        if self._ask.echo is not None:
            self._text.append(self._ask.echo)
            yield self._chunk(self._ask.echo)

    def said(self, part: Said) -> Iterator[dict[str, Any]]:
        """A chunk's, or none."""
        text = "".join(event.text for event in part.events if isinstance(event, Content))
        self._text.append(text)
        logprobs = None
        if part.scored is not None:
            logprobs = self._logprobs.prompt(part.scored)
        if part.likelihood is not None:
            logprobs = self._logprobs.columns([part.likelihood])
        if text or logprobs:
            yield self._chunk(text, logprobs)

    def ended(self, part: Ended) -> dict[str, Any]:
        """The reason."""
        self.end = part
        return self._chunk("", finish=part.finish)

    def document(self) -> dict[str, Any]:
        """All of it."""
        assert self.end is not None
        logprobs = None if self._ask.top_logprobs is None else self._logprobs.all
        return self._chunk("".join(self._text), logprobs, self.end.finish)

    def _chunk(self, text: str, logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish}


class CompletionShape(ChoicesShape):
    """See shape.Shape."""

    kind = chunk_kind = "text_completion"

    def __init__(self, model: str, ask: Ask, request: CompletionRequest, tokenizer: Tokenizer) -> None:
        choices = [_Choice(index, ask, tokenizer) for index in range(ask.choices)]
        wanted = bool(request.stream_options and request.stream_options.include_usage)
        super().__init__("cmpl", model, ask, choices, usage=wanted)
