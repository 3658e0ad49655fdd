"""OpenAI's /v1/completions: bare texts to be continued, each by as many choices, one text's after the other's."""

from collections.abc import Iterator, Sequence
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


def prompts(request: CompletionRequest) -> list[str | list[int]]:
    """The texts, or their tokens: one or several."""
    given = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    several = [each for each in given if not isinstance(each, int)]
    if not several:
        return [[token for token in given if isinstance(token, int)]]
    if len(several) < len(given):
        raise ApiError("prompt: give texts, or lists of tokens; there are single tokens among them", param="prompt")
    return several


def wish(request: CompletionRequest) -> Wish:
    """How it is to be continued. Raises ApiError for what is malformed or not supported."""
    _refuse(request)
    choices, best = _choices(request)
    nothing = bool(request.echo) and request.max_tokens == 0
    longest = None if nothing else fields.limit("max_tokens", request.max_tokens)
    return Wish(
        fields.sampling(request),
        longest,
        fields.stops("stop", request.stop),
        request.logprobs,
        fields.penalties(request),
        choices,
        best,
        echo=bool(request.echo),
        nothing=nothing,
    )


def _refuse(request: CompletionRequest) -> None:
    if request.suffix:
        raise unsupported("suffix", "this model fills in nothing before a text; leave it out")
    if request.logprobs is not None and not 0 <= request.logprobs <= MOST_LOGPROBS:
        raise ApiError(f"logprobs: {request.logprobs} is not between 0 and {MOST_LOGPROBS}", param="logprobs")


def _choices(request: CompletionRequest) -> tuple[int, int | None]:
    """How many answers are computed of each prompt, and how many of them are told, None for all."""
    told = fields.choices("n", request.n) or 1
    computed = fields.choices("best_of", request.best_of) or told
    if computed < told:
        raise ApiError(f"best_of: {computed} is less than n, {told}; leave it out or give more", param="best_of")
    if request.echo and request.logprobs is not None and computed > 1:
        field = "n" if told > 1 else "best_of"
        raise ApiError(f"{field}: with echo and logprobs there is one answer; ask for more without echo", param=field)
    if request.stream and computed > told:
        raise ApiError("best_of: the best are known at the end; ask for them without stream", param="best_of")
    return computed, told if computed > told else None


class _Choice:
    """One text: its chunks' choices, and its own in the document."""

    def __init__(self, index: int, ask: Ask, tokenizer: Tokenizer, *, keeps: bool) -> None:
        self._index, self._ask, self._keeps = index, ask, keeps
        self._text: list[str] = []
        self._logprobs = likelihoods.Legacy(tokenizer)
        self._columns = likelihoods.Columns()
        self._mean = likelihoods.Mean()
        self.end: Ended | None = None

    @property
    def kept(self) -> int:
        """See shape.Shape."""
        return self._columns.size

    @property
    def likelihood(self) -> float:
        """The mean logprob of the answer's tokens."""
        return self._mean.value

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
            self._mean.add(part.likelihood)
            logprobs = None if self._ask.top_logprobs is None else self._logprobs.columns([part.likelihood])
        if logprobs and self._keeps:
            self._columns.add(logprobs)
        if text or logprobs:
            yield self._chunk(text, logprobs)

    def ended(self, part: Ended) -> dict[str, Any]:
        """The reason."""
        self.end = part
        return self._chunk("", finish=part.finish)

    def document(self) -> dict[str, Any]:
        """All of it."""
        assert self.end is not None
        logprobs = None if self._ask.top_logprobs is None else self._columns.document()
        return self._chunk("".join(self._text), logprobs, self.end.finish)

    def _chunk(self, text: str, logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish}


class CompletionShape(ChoicesShape):
    """See shape.Shape."""

    kind = chunk_kind = "text_completion"

    def __init__(self, model: str, asks: Sequence[Ask], request: CompletionRequest, tokenizer: Tokenizer) -> None:
        asked = [ask for ask in asks for _ in range(ask.choices)]
        self._texts = [_Choice(index, ask, tokenizer, keeps=not request.stream) for index, ask in enumerate(asked)]
        wanted = bool(request.stream_options and request.stream_options.include_usage)
        super().__init__("cmpl", model, asks, self._texts, usage=wanted)

    def _told(self) -> Sequence[_Choice]:
        """All, or the likeliest of each prompt."""
        each, best = self._asks[0].choices, self._asks[0].best
        if best is None:
            return self._texts
        of_prompts = (self._texts[first : first + each] for first in range(0, len(self._texts), each))
        ranked = (sorted(own, key=lambda text: text.likelihood, reverse=True) for own in of_prompts)
        return [text for own in ranked for text in own[:best]]
