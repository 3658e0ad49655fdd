"""The generation loop: a prompt's tokens in, pieces of text out, until something ends the answer.

Owns when to stop (end token, stop string, token limit, context) and what was counted and timed. Promises that a
piece is printed text for good: no half character, nothing of a stop string. Knows nothing of command lines, chats or
how a session computes logits; chat runs on this same loop, and the server, where others compute, on its steps.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..manifests.errors import UsageError
from .penalties import Penalizer, Penalties
from .sampling import Allowed, Logits, Sampler
from .stops import StopStrings, check_stops
from .tokenizer import TextStream

SHORTER = "shorten the prompt or raise the context"


class RoomError(UsageError):
    """A prompt that the context has no room for, in the words by which agents know that they must shorten it."""


Finish = Literal["stop", "length", "interrupted"]


class Extensible(Protocol):
    """What the loop needs of a session."""

    @property
    def position(self) -> int:
        """How many tokens are in the session."""

    def extend(self, tokens: Sequence[int]) -> Logits:
        """Add `tokens`; the logits after the last of them, float32 [V]."""


class Constraint(Protocol):
    """What an answer is held to; see answers.constraint."""

    def allowed(self) -> Allowed:
        """Which tokens may come next, bool [V]; at least one."""

    def take(self, token: int) -> None:
        """A token that came, an end token included."""


@dataclass(frozen=True)
class Limits:
    """What ends an answer besides the user: at most `max_tokens` of them, `context` tokens in all, ends and stops.

    Raises UsageError for no tokens at all and for an empty stop string.
    """

    max_tokens: int
    context: int
    end_tokens: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max-tokens {self.max_tokens} leaves nothing to generate; give 1 or more")
        check_stops(self.stops)


@dataclass(frozen=True)
class Piece:
    """Text that is ready to show; `token` completed it, None for what was left when the answer ended."""

    text: str
    token: int | None


@dataclass(frozen=True)
class Result:
    """A finished or interrupted answer. `tokens` leaves out the end token; seconds are those spent computing."""

    text: str
    tokens: tuple[int, ...]
    finish: Finish
    stop: str | None
    prompt_tokens: int
    prompt_seconds: float
    decode_steps: int
    decode_seconds: float

    @property
    def prompt_rate(self) -> float | None:
        """Prompt tokens per second; None when nothing was measured."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else None

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second after the first, which the prompt's own pass gives; None when there was no second."""
        return self.decode_steps / self.decode_seconds if self.decode_steps else None


class Steps:
    """An answer without the engine: of logits a token, of the token text, until something ends it.

    Ask `choose`, then `ends`; if it does not, `push` the token and ask `ended`. `finish` and `stop` say why.
    """

    def __init__(
        self,
        sampler: Sampler,
        stream: TextStream,
        limits: Limits,
        room: int,
        constraint: Constraint | None = None,
        penalizer: Penalizer | None = None,
    ) -> None:
        self.tokens: list[int] = []
        self.finish: Finish = "interrupted"  # until one of the steps says otherwise
        self._sampler, self._stream, self._room, self._constraint = sampler, stream, room, constraint
        self._penalizer = penalizer or Penalizer(Penalties(), ())
        self._end_tokens, self._stops = limits.end_tokens, StopStrings(limits.stops)

    @property
    def stop(self) -> str | None:
        """The stop string that was found."""
        return self._stops.found

    def choose(self, logits: Logits) -> int:
        """The next token: penalties and biases first, what the constraint allows last."""
        logits = self._penalizer.adjusted(logits)
        if self._constraint is None:
            return self._sampler.choose(logits)
        token = self._sampler.choose(logits, self._constraint.allowed())
        self._constraint.take(token)
        return token

    def ends(self, token: int) -> bool:
        """Whether the token ends the answer, of which it is no part."""
        if token in self._end_tokens:
            self.finish = "stop"
        return token in self._end_tokens

    def push(self, token: int) -> str:
        """The text that a token of the answer completes."""
        self.tokens.append(token)
        self._penalizer.take(token)
        return self._stops.push(self._stream.push(token))

    def ended(self) -> bool:
        """Whether the answer is over with the token that was pushed last."""
        if self._stops.found is not None:
            self.finish = "stop"
        elif len(self.tokens) >= self._room:
            self.finish = "length"
        return self.finish != "interrupted"

    def rest(self) -> str:
        """The text that is held back, at the end."""
        return "" if self._stops.found is not None else self._stops.push(self._stream.finish()) + self._stops.finish()


class Generation:
    """One answer: iterate over its pieces, once, then ask for its `result`.

    Without a `constraint` any token may come. Raises UsageError at once for an empty prompt and for one that leaves no
    room in the context.
    """

    def __init__(
        self,
        session: Extensible,
        prompt: Sequence[int],
        sampler: Sampler,
        stream: TextStream,
        limits: Limits,
        constraint: Constraint | None = None,
    ) -> None:
        room = min(limits.max_tokens, check_room(session.position, prompt, limits))
        self._session, self._prompt = session, prompt
        self._steps = Steps(sampler, stream, limits, room, constraint)
        self._prefill, self._decode = _Clock(), _Clock()
        self._text: list[str] = []

    def __iter__(self) -> Iterator[Piece]:
        token = self._prefill.time(self._next, self._prompt)
        while not self._steps.ends(token):
            yield from self._show(self._steps.push(token), token)
            if self._steps.ended():
                break
            token = self._decode.time(self._next, [token])
        yield from self.rest()

    def rest(self) -> Iterator[Piece]:
        """What is held back, as a last piece; for a reader that leaves the loop early. Empty the second time."""
        yield from self._show(self._steps.rest(), None)

    def result(self) -> Result:
        """The answer as far as it has come."""
        return Result(
            text="".join(self._text),
            tokens=tuple(self._steps.tokens),
            finish=self._steps.finish,
            stop=self._steps.stop,
            prompt_tokens=len(self._prompt),
            prompt_seconds=self._prefill.seconds,
            decode_steps=self._decode.calls,
            decode_seconds=self._decode.seconds,
        )

    def _next(self, tokens: Sequence[int]) -> int:
        return self._steps.choose(self._session.extend(tokens))

    def _show(self, text: str, token: int | None) -> Iterator[Piece]:
        if text:
            self._text.append(text)
        if text or token is not None:
            yield Piece(text, token)


def check_room(position: int, prompt: Sequence[int], limits: Limits, remedy: str = SHORTER) -> int:
    """How many tokens the context can take after `prompt`: at least one, else RoomError, which ends with `remedy`."""
    if not prompt:
        raise UsageError("the prompt is empty; give some text")
    used = position + len(prompt)
    if used >= limits.context:
        most = f"{limits.context - 1} maximum, as no answer fits a context of {limits.context} else"
        raise RoomError(f"prompt is too long: {used} tokens > {most}; {remedy}")
    return limits.context - used


class _Clock:
    """Seconds and calls of one kind of work; waiting for whoever reads the pieces is not counted."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0

    def time(self, work: Callable[[Sequence[int]], int], tokens: Sequence[int]) -> int:
        start = time.perf_counter()
        result = work(tokens)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return result
