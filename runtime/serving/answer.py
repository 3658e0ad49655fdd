"""An answer of the batch on its way to a client: what it says, in order, and how it ended.

Made in the thread that computes, handed to `hand`, which must not wait. Promises that the last part, and only that, is
`Ended` or `Failed`. `index` tells apart the answers of one client's request. Knows no protocol.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..answers.events import CallEnded, Event
from ..backends.base import Floats
from ..generate import Finish, Steps
from ..sampling import check_finite


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A token's natural log probability before all that a request asks for, and the likeliest tokens with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, logits: Floats, token: int, count: int) -> "Likelihood":
        """With `count` of the likeliest tokens."""
        shifted = logits.astype(np.float64) - float(logits.max())
        logprobs = shifted - np.log(np.exp(shifted).sum())
        likely = _likeliest(logprobs, count) if count else ()
        return cls(token, float(logprobs[token]), tuple((int(each), float(logprobs[each])) for each in likely))


def _likeliest(logprobs: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """The indices of the largest, of equals the first, without sorting all."""
    count = min(count, len(logprobs))
    found = np.flatnonzero(logprobs >= np.partition(logprobs, -count)[-count])
    return found[np.argsort(-logprobs[found], kind="stable")][:count]


@dataclass(frozen=True)
class Began:
    """Computing begins; so many tokens of the prompt were remembered."""

    cached: int
    index: int = 0


@dataclass(frozen=True)
class Said:
    """What a token completed, often something; without a token, what was held back at the end, or the prompt's."""

    events: tuple[Event, ...]
    likelihood: Likelihood | None = None
    index: int = 0
    scored: "Scored | None" = None


@dataclass(frozen=True)
class Scored:
    """A prompt: its first token, before which there was nothing, and how likely the others were."""

    first: int
    found: tuple[Likelihood, ...]


@dataclass(frozen=True)
class Ended:
    """The answer is whole, or was cut. `stop`: the stop string that ended it. `tokens`: how many, without an end's.

    `reasoning`: how many of them were thinking, its tags included.
    """

    finish: Finish
    stop: str | None
    tokens: int
    reasoning: int = 0
    index: int = 0


@dataclass(frozen=True)
class Failed:
    """There is no more, because of this."""

    error: Exception


Part = Began | Said | Ended | Failed


class Reading(Protocol):
    """What makes events of text; see answers.reader."""

    @property
    def thinking(self) -> bool:
        """Whether thinking has begun, and has not ended."""

    def push(self, text: str) -> list[Event]:
        """The events that a piece completes."""

    def finish(self) -> list[Event]:
        """The last events."""


class Scorer:
    """Reads a prompt's logits as they come, in order, and finds how likely each of its tokens was."""

    def __init__(self, prompt: Sequence[int], top: int) -> None:
        self._prompt, self._top = prompt, top
        self._found: list[Likelihood] = []
        self._error: Exception | None = None

    def read(self, logits: Floats) -> None:
        """Logits [n, vocab] after the next tokens. Never raises: others are computed at the same time."""
        try:
            done = len(self._found) + 1
            for row, token in zip(logits, self._prompt[done : done + len(logits)], strict=False):
                self._found.append(Likelihood.of(row, token, self._top))
        except Exception as error:
            self._error = self._error or error

    def scored(self) -> Scored:
        """What was found, of the whole prompt. Raises what went wrong, CorruptInputError for logits that are none."""
        if self._error is not None:
            raise self._error
        check_finite(np.array([each.logprob for each in self._found]))
        return Scored(self._prompt[0], tuple(self._found))


class Answer:
    """An `Answering`. `top_logprobs`: so many of each token's alternatives are told, None for no logprobs at all.

    With `one_call` it ends after its first call. What a `scorer` found of the prompt is told before the first token;
    with `nothing` there is none. Beside it an end token's likelihood is told, too: whoever adds up a prompt's counts on
    one more token.
    """

    def __init__(
        self,
        steps: Steps,
        reader: Reading,
        hand: Callable[[Part], None],
        *,
        top_logprobs: int | None = None,
        one_call: bool = False,
        index: int = 0,
        scorer: Scorer | None = None,
        nothing: bool = False,
    ) -> None:
        self._steps, self._reader, self._hand = steps, reader, hand
        self._top, self._one_call, self._index = top_logprobs, one_call, index
        self._scorer, self._nothing = scorer, nothing
        self._end_told = scorer is not None and top_logprobs is not None
        self.read = None if scorer is None else scorer.read  # what the request shows the prompt's logits to
        self._reasoning = 0

    def begin(self, cached: int) -> None:
        """Tell that computing begins."""
        self._hand(Began(cached, self._index))

    def next(self, logits: Floats) -> int | None:
        """The next token, once what it completes was handed on."""
        if self._scorer is not None:
            self._hand(Said((), None, self._index, self._scorer.scored()))
            self._scorer = None
        if self._nothing:
            self._hand(self._ended("length", None))
            return None
        token = self._steps.choose(logits)
        if self._steps.ends(token):
            if self._end_told:
                self._hand(Said((), self._likelihood(logits, token), self._index))
            self._end()
            return None
        events = self._read(token)
        called = self._one_call and _until_call(events)
        likelihood = self._likelihood(logits, token)
        if events or likelihood is not None:
            self._hand(Said(tuple(events), likelihood, self._index))
        if called:
            self._hand(self._ended("stop", None))
        elif self._steps.ended():
            self._end()
            return None
        return None if called else token

    def fail(self, error: Exception) -> None:
        """Tell why there is no more."""
        self._hand(Failed(error))

    def _likelihood(self, logits: Floats, token: int) -> Likelihood | None:
        """If it is told."""
        return None if self._top is None else Likelihood.of(logits, token, self._top)

    def _read(self, token: int) -> list[Event]:
        """The events that a token completes."""
        before = self._reader.thinking
        events = self._reader.push(self._steps.push(token))
        if before or self._reader.thinking:
            self._reasoning = len(self._steps.tokens)
        return events

    def _end(self) -> None:
        rest = [*self._reader.push(self._steps.rest()), *self._reader.finish()]
        if rest:
            self._hand(Said(tuple(rest), index=self._index))
        self._hand(self._ended(self._steps.finish, self._steps.stop))

    def _ended(self, finish: Finish, stop: str | None) -> Ended:
        return Ended(finish, stop, len(self._steps.tokens), self._reasoning, self._index)


def _until_call(events: list[Event]) -> bool:
    """Whether a call ends in these events; what follows it is dropped from them."""
    end = next((index for index, event in enumerate(events) if isinstance(event, CallEnded)), None)
    if end is not None:
        del events[end + 1 :]
    return end is not None
