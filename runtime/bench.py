"""How fast a pack runs here: prompt and decode speed, cold and warm, with what was read, and what would be possible.

Tokens are random (fixed seeds, new ones each repetition), for the prompt and for decoding alike, or those of a text.
Random ones route like no text does: hit rates are a lower bound then, and no result depends on what the model says.
Cold means that each phase has an engine of its own, whose slots are empty (for decoding: but for what a prompt of one
token left), and that the system was asked to forget the pack's pages before it; warm means that a prompt and an answer
went before, in the same engine. The storage is measured between the cold ones. Medians are reported. Knows nothing of
tables or JSON.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from statistics import median
from typing import Generic, Protocol, TypeVar

import numpy as np

from ..manifests.errors import UsageError
from . import host
from .figures import Condition, Counters, Counts, Figures, Sample
from .generate import Extensible
from .trace import TOKEN, UNTRACED, Recorder
from .watch import UNWATCHED


class Measurable(Protocol):
    """What the benchmark needs of an engine."""

    @property
    def stats(self) -> Counters:
        """The counters as they stand now; a value that later work leaves alone."""

    def new_session(self) -> Extensible:
        """An empty session."""


E = TypeVar("E", bound=Measurable)
E_contra = TypeVar("E_contra", contravariant=True)


class Watching(Protocol[E_contra]):
    """Who watches warm answers; see watch.Watch."""

    def answer(self, engine: E_contra) -> AbstractContextManager[Recorder]:
        """The context of one answer, which hears when each token began and ended."""


@dataclass(frozen=True)
class Workload:
    """What each repetition does; `vocab_size` bounds the random tokens, of which a `text` takes the place."""

    prompt_tokens: int
    decode_tokens: int
    repetitions: int
    vocab_size: int
    text: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "decode_tokens", "repetitions"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', ' ')}: {getattr(self, name)} is less than 1")
        if self.text is not None and len(self.text) < self.length:
            raise UsageError(f"the text has {len(self.text)} tokens, and a repetition takes {self.length}; give more")

    @property
    def length(self) -> int:
        """Tokens of one repetition."""
        return self.prompt_tokens + self.decode_tokens

    def check(self, context: int) -> None:
        """Raises UsageError when a repetition has more tokens than `context`."""
        if self.length > context:
            raise UsageError(
                f"{self.prompt_tokens} prompt and {self.decode_tokens} decode tokens do not fit the context of "
                f"{context}; ask for fewer"
            )

    def tokens(self, repetition: int) -> tuple[list[int], list[int]]:
        """The prompt and the tokens to decode of one repetition; a text is taken piece by piece, round and round."""
        drawn = self._random(repetition) if self.text is None else self._piece(self.text, repetition)
        return drawn[: self.prompt_tokens], drawn[self.prompt_tokens :]

    def _random(self, repetition: int) -> list[int]:
        drawn: list[int] = (
            np.random.Generator(np.random.PCG64(repetition)).integers(self.vocab_size, size=self.length).tolist()
        )
        return drawn

    def _piece(self, text: Sequence[int], repetition: int) -> list[int]:
        first = repetition % (len(text) // self.length) * self.length
        return list(text[first : first + self.length])


@dataclass(frozen=True)
class Measured(Generic[E]):
    """What a benchmark found. `cache_dropped`: whether cold was cold. `engine` is the warm one, closed.

    `storage_rates`: GB/s (10^9 bytes) of random records, measured before each cold repetition.
    """

    figures: tuple[Figures, ...]
    cache_dropped: bool
    storage_rates: tuple[float, ...]
    engine: E


def measure(
    open_engine: Callable[[], AbstractContextManager[E]],
    drop_cache: Callable[[], bool],
    workload: Workload,
    storage_rate: Callable[[], float],
    watch: Watching[E] = UNWATCHED,
) -> Measured[E]:
    """Cold and warm figures of both phases, of a workload that was checked against the engine's context.

    `storage_rate` measures what the storage delivers, in GB/s; no engine is open meanwhile. `watch` sees the warm
    answers that count.
    """
    drops, count = _Drops(drop_cache), workload.repetitions
    rates, cold = [], []
    for repetition in range(count):
        rates.append(storage_rate())
        cold.append(_cold(open_engine, drops, *workload.tokens(repetition)))
    with open_engine() as engine:
        _warm(engine, *workload.tokens(count), UNWATCHED)
        warm = [_warm(engine, *workload.tokens(repetition), watch) for repetition in range(count + 1, 2 * count + 1)]
    limit = median(rates)
    figures = (*_condense("cold", cold, limit), *_condense("warm", warm, limit))
    return Measured(figures, drops.all, tuple(rates), engine)


class _Drops:
    """Calls `drop` and remembers whether it could each time."""

    def __init__(self, drop: Callable[[], bool]) -> None:
        self._drop = drop
        self.all = True

    def __call__(self) -> None:
        self.all = self._drop() and self.all


def _cold(
    open_engine: Callable[[], AbstractContextManager[Measurable]],
    drop: Callable[[], None],
    prompt: list[int],
    answer: list[int],
) -> tuple[Sample, Sample]:
    """Both phases, each in an engine of its own; a function each, so that one is gone before the next opens."""
    return _cold_prompt(open_engine, drop, prompt), _cold_decode(open_engine, drop, prompt[:1], answer)


def _cold_prompt(
    open_engine: Callable[[], AbstractContextManager[Measurable]], drop: Callable[[], None], prompt: list[int]
) -> Sample:
    start = time.perf_counter()
    with open_engine() as engine:
        session = engine.new_session()
        opening = time.perf_counter() - start
        drop()
        return replace(_prompt_sample(engine, session, prompt), opening_seconds=opening)


def _cold_decode(
    open_engine: Callable[[], AbstractContextManager[Measurable]],
    drop: Callable[[], None],
    before: list[int],
    answer: list[int],
) -> Sample:
    with open_engine() as engine:
        session = engine.new_session()
        session.extend(before)
        drop()
        return _decode_sample(engine, session, answer, UNTRACED)


def _warm(engine: E, prompt: list[int], answer: list[int], watch: Watching[E]) -> tuple[Sample, Sample]:
    """The prompt and then its answer in a new session of an engine that may have worked before."""
    session = engine.new_session()
    first = _prompt_sample(engine, session, prompt)
    with watch.answer(engine) as trace:
        return first, _decode_sample(engine, session, answer, trace)


def _prompt_sample(engine: Measurable, session: Extensible, tokens: list[int]) -> Sample:
    return _sample(engine, len(tokens), lambda: session.extend(tokens))


def _decode_sample(engine: Measurable, session: Extensible, tokens: list[int], trace: Recorder) -> Sample:
    return _sample(engine, len(tokens), lambda: _decode(session, tokens, trace))


def _decode(session: Extensible, tokens: Sequence[int], trace: Recorder) -> None:
    for token in tokens:
        start = time.perf_counter()
        session.extend([token])
        trace.slice(TOKEN, start, time.perf_counter())


def _sample(engine: Measurable, tokens: int, work: Callable[[], object]) -> Sample:
    before, storage_before, start = engine.stats, host.storage_read(), time.perf_counter()
    work()
    seconds, after, storage_after = time.perf_counter() - start, engine.stats, host.storage_read()
    storage = None if storage_after is None or storage_before is None else storage_after - storage_before
    return Sample(tokens, seconds, Counts.between(before, after), storage)


def _condense(condition: Condition, samples: Sequence[tuple[Sample, Sample]], limit: float) -> list[Figures]:
    prompts, decodes = zip(*samples, strict=True)
    return [Figures.of(condition, "prompt", prompts, limit), Figures.of(condition, "decode", decodes, limit)]
