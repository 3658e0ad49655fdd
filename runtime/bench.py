"""How fast a pack runs here: prompt and decode speed, cold and warm, with what was read to reach it.

Tokens are random (fixed seeds, new ones each repetition), for the prompt and for decoding alike: they route like no
text does, so hit rates here are a lower bound, and no result depends on what the model says. Cold means that the
slots start empty and that the system was asked to forget the pack's pages before each phase; warm means that a
prompt and an answer went before. Medians are reported. Knows nothing of tables or JSON.
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
    def context(self) -> int:
        """The most tokens a session may hold."""

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

    def tokens(self, repetition: int) -> tuple[list[int], list[int]]:
        """The prompt and the tokens to decode of one repetition."""
        random = np.random.Generator(np.random.PCG64(repetition))
        drawn = random.integers(self.vocab_size, size=self.prompt_tokens + self.decode_tokens).tolist()
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
    """Cold and warm figures of both phases. Raises UsageError when the workload does not fit the engine's context."""
    drops = _Drops(drop_cache)
    cold = [_cold(open_engine, drops, workload, repetition) for repetition in range(workload.repetitions)]
    with open_engine() as engine:
        _repetition(engine, workload, workload.repetitions)
        later = range(workload.repetitions + 1, 2 * workload.repetitions + 1)
        warm = [_repetition(engine, workload, repetition) for repetition in later]
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
    open_engine: Callable[[], AbstractContextManager[Measurable]], drops: _Drops, workload: Workload, repetition: int
) -> tuple[Sample, Sample]:
    """One repetition in an engine of its own, which is gone, memory and all, before the next one opens."""
    with open_engine() as engine:
        return _repetition(engine, workload, repetition, before=drops)


def _nothing() -> None:
    pass


def _repetition(
    engine: Measurable, workload: Workload, repetition: int, before: Callable[[], None] = _nothing
) -> tuple[Sample, Sample]:
    """The prompt and then the decoding of one repetition in a new session; `before` is called ahead of each."""
    if workload.prompt_tokens + workload.decode_tokens > engine.context:
        raise UsageError(
            f"{workload.prompt_tokens} prompt and {workload.decode_tokens} decode tokens do not fit the context of "
            f"{engine.context}; ask for fewer"
        )
    session = engine.new_session()
    prompt, answer = workload.tokens(repetition)
    before()
    first = _sample(engine, len(prompt), lambda: session.extend(prompt))
    before()
    return first, _sample(engine, len(answer), lambda: _decode(session, answer))


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
