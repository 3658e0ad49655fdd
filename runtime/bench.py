"""How fast a pack runs here: prompt and decode speed, cold and warm, with what was read to reach it.

Tokens are random (fixed seeds, new ones each repetition), for the prompt and for decoding alike: they route like no
text does, so hit rates here are a lower bound, and no result depends on what the model says. Cold means that each
phase has an engine of its own, whose slots are empty (for decoding: but for what a prompt of one token left), and
that the system was asked to forget the pack's pages before it; warm means that a prompt and an answer went before,
in the same engine. Medians are reported. Knows nothing of tables or JSON.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np

from ..manifests.errors import UsageError
from . import host
from .generate import Extensible

Condition = Literal["cold", "warm"]
Phase = Literal["prompt", "decode"]


class Counters(Protocol):
    """What an engine has counted since it was opened."""

    @property
    def bytes_read(self) -> int:
        """Bytes of expert records read."""

    @property
    def records_read(self) -> int:
        """Expert records read."""

    @property
    def slot_hits(self) -> int:
        """Experts that were wanted and still in a slot."""


class Measurable(Protocol):
    """What the benchmark needs of an engine."""

    @property
    def stats(self) -> Counters:
        """The counters as they stand now; a value that later work leaves alone."""

    def new_session(self) -> Extensible:
        """An empty session."""


E = TypeVar("E", bound=Measurable)


@dataclass(frozen=True)
class Workload:
    """What each repetition does; `vocab_size` bounds the random tokens."""

    prompt_tokens: int
    decode_tokens: int
    repetitions: int
    vocab_size: int

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "decode_tokens", "repetitions"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', ' ')}: {getattr(self, name)} is less than 1")

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
        """The prompt and the tokens to decode of one repetition."""
        random = np.random.Generator(np.random.PCG64(repetition))
        drawn = random.integers(self.vocab_size, size=self.length).tolist()
        return drawn[: self.prompt_tokens], drawn[self.prompt_tokens :]


@dataclass(frozen=True)
class Sample:
    """One phase, once. `storage_bytes` are those that page caches did not have, None where the system does not say."""

    tokens: int
    seconds: float
    bytes_read: int
    records_read: int
    slot_hits: int
    storage_bytes: int | None


@dataclass(frozen=True)
class Figures:
    """The medians of one phase under one condition, over `repetitions`."""

    condition: Condition
    phase: Phase
    repetitions: int
    tokens_per_second: float
    slowest: float
    fastest: float
    bytes_per_token: float
    hit_rate: float | None
    gigabytes_per_second: float
    storage_share: float | None

    @classmethod
    def of(cls, condition: Condition, phase: Phase, samples: Sequence[Sample]) -> "Figures":
        """Condense at least one sample."""
        rates = [sample.tokens / sample.seconds for sample in samples]
        return cls(
            condition=condition,
            phase=phase,
            repetitions=len(samples),
            tokens_per_second=median(rates),
            slowest=min(rates),
            fastest=max(rates),
            bytes_per_token=median(sample.bytes_read / sample.tokens for sample in samples),
            hit_rate=_median(share(sample.slot_hits, sample.records_read) for sample in samples),
            gigabytes_per_second=median(sample.bytes_read / sample.seconds / 1e9 for sample in samples),
            storage_share=_median(_storage_share(sample) for sample in samples),
        )


@dataclass(frozen=True)
class Measured(Generic[E]):
    """What a benchmark found. `cache_dropped`: whether cold was cold. `engine` is the warm one, closed."""

    figures: tuple[Figures, ...]
    cache_dropped: bool
    engine: E


def measure(
    open_engine: Callable[[], AbstractContextManager[E]], drop_cache: Callable[[], bool], workload: Workload
) -> Measured[E]:
    """Cold and warm figures of both phases, of a workload that was checked against the engine's context."""
    drops, count = _Drops(drop_cache), workload.repetitions
    cold = [_cold(open_engine, drops, *workload.tokens(repetition)) for repetition in range(count)]
    with open_engine() as engine:
        _warm(engine, *workload.tokens(count))
        warm = [_warm(engine, *workload.tokens(repetition)) for repetition in range(count + 1, 2 * count + 1)]
    return Measured((*_condense("cold", cold), *_condense("warm", warm)), drops.all, engine)


def share(part: int, rest: int) -> float | None:
    """part / (part + rest), such as the hit rate of slot hits and records read; None when there was neither."""
    return part / (part + rest) if part + rest else None


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
    with open_engine() as engine:
        session = engine.new_session()
        drop()
        return _prompt_sample(engine, session, prompt)


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
        return _decode_sample(engine, session, answer)


def _warm(engine: Measurable, prompt: list[int], answer: list[int]) -> tuple[Sample, Sample]:
    """The prompt and then its answer in a new session of an engine that may have worked before."""
    session = engine.new_session()
    return _prompt_sample(engine, session, prompt), _decode_sample(engine, session, answer)


def _prompt_sample(engine: Measurable, session: Extensible, tokens: list[int]) -> Sample:
    return _sample(engine, len(tokens), lambda: session.extend(tokens))


def _decode_sample(engine: Measurable, session: Extensible, tokens: list[int]) -> Sample:
    return _sample(engine, len(tokens), lambda: _decode(session, tokens))


def _decode(session: Extensible, tokens: Sequence[int]) -> None:
    for token in tokens:
        session.extend([token])


def _sample(engine: Measurable, tokens: int, work: Callable[[], object]) -> Sample:
    before, storage_before, start = engine.stats, host.storage_read(), time.perf_counter()
    work()
    seconds, after, storage_after = time.perf_counter() - start, engine.stats, host.storage_read()
    return Sample(
        tokens=tokens,
        seconds=seconds,
        bytes_read=after.bytes_read - before.bytes_read,
        records_read=after.records_read - before.records_read,
        slot_hits=after.slot_hits - before.slot_hits,
        storage_bytes=None if storage_after is None or storage_before is None else storage_after - storage_before,
    )


def _condense(condition: Condition, samples: Sequence[tuple[Sample, Sample]]) -> list[Figures]:
    prompts, decodes = zip(*samples, strict=True)
    return [Figures.of(condition, "prompt", prompts), Figures.of(condition, "decode", decodes)]


def _storage_share(sample: Sample) -> float | None:
    """Which part of the bytes read came from storage; the rest were in the page cache."""
    if sample.storage_bytes is None or not sample.bytes_read:
        return None
    return min(1.0, sample.storage_bytes / sample.bytes_read)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
