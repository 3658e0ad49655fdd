"""What was counted while a pack ran, what it amounts to, and how near that comes to what was possible.

The ceiling is what no engine with these kernels and this cache could pass: a token takes at least as long as the
storage needs for the bytes that were missing, and at least as long as was computed, whichever is longer. Knows
nothing of how phases are run, of tables or of JSON.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, Protocol

Condition = Literal["cold", "warm"]
Phase = Literal["prompt", "decode"]
Cause = Literal["storage", "compute"]


class Counters(Protocol):
    """What an engine has counted since it was opened."""

    @property
    def bytes_read(self) -> int:
        """Bytes of expert records read."""

    @property
    def records_read(self) -> int:
        """Expert records read, those read on a guess included."""

    @property
    def slot_hits(self) -> int:
        """Experts that were wanted and still in a slot."""

    @property
    def foreseen(self) -> int:
        """Expert records read on a guess."""

    @property
    def foreseen_used(self) -> int:
        """Those of them that were wanted."""

    @property
    def wait_seconds(self) -> float:
        """Time in which nothing could be computed for want of a record."""

    @property
    def read_seconds(self) -> float:
        """Time in which a read was under way."""

    @property
    def stages(self) -> Mapping[str, float]:
        """Seconds by part of a layer."""


@dataclass(frozen=True)
class Counts:
    """What an engine counted during one phase; each as in Counters."""

    bytes_read: int = 0
    records_read: int = 0
    slot_hits: int = 0
    foreseen: int = 0
    foreseen_used: int = 0
    wait_seconds: float = 0.0
    read_seconds: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def between(cls, before: Counters, after: Counters) -> "Counts":
        """What came to the counters from one moment to another."""
        names = [name for name in cls.__dataclass_fields__ if name != "stages"]
        stages = {name: seconds - before.stages.get(name, 0.0) for name, seconds in after.stages.items()}
        return cls(**{name: getattr(after, name) - getattr(before, name) for name in names}, stages=stages)

    @property
    def wasted(self) -> int:
        """Wrong guesses."""
        return self.foreseen - self.foreseen_used

    @property
    def missed(self) -> int:
        """Wanted experts that were not in a slot: all that were read but for wrong guesses."""
        return self.records_read - self.wasted

    @property
    def missed_bytes(self) -> float:
        """Their bytes; exact where all records have the same size."""
        return self.bytes_read * self.missed / self.records_read if self.records_read else 0.0


@dataclass(frozen=True)
class Sample:
    """One phase, once. `storage_bytes` are those that page caches did not have, None where the system does not say.

    `opening_seconds`: what opening the engine took before it, 0 where it was open.
    """

    tokens: int
    seconds: float
    counts: Counts
    storage_bytes: int | None = None
    opening_seconds: float = 0.0

    @property
    def compute_seconds(self) -> float:
        """Per token: the time that was not spent waiting for records."""
        return (self.seconds - self.counts.wait_seconds) / self.tokens

    def storage_seconds(self, limit: float) -> float:
        """Per token: what the storage, at `limit` GB/s, needs for the missed bytes that page caches did not have."""
        missed = self.counts.missed_bytes
        delivered = missed if self.storage_bytes is None else min(missed, self.storage_bytes)
        return delivered / self.tokens / (limit * 1e9)


@dataclass(frozen=True)
class Ceiling:
    """The most tokens per second that were possible, the part of it that was reached, and what sets it."""

    tokens_per_second: float
    share: float
    cause: Cause

    @classmethod
    def of(cls, samples: Sequence[Sample], limit: float) -> "Ceiling":
        """Medians over at least one sample, given the storage's limit in GB/s."""
        storage = median(sample.storage_seconds(limit) for sample in samples)
        compute = median(sample.compute_seconds for sample in samples)
        least = max(storage, compute)
        taken = median(sample.seconds / sample.tokens for sample in samples)
        return cls(1 / least, least / taken, "storage" if storage > compute else "compute")


@dataclass(frozen=True)
class Figures:
    """The medians of one phase under one condition, over `repetitions`. GB are 10^9 bytes.

    `first_token_seconds`: from opening the engine (cold) or giving the prompt (warm) to logits; None for decoding.
    `gigabytes_per_second` is over the whole phase, `reading_gigabytes_per_second` over the time with a read under way.
    `stage_milliseconds` are per token.
    """

    condition: Condition
    phase: Phase
    repetitions: int
    tokens_per_second: float
    slowest: float
    fastest: float
    first_token_seconds: float | None
    bytes_per_token: float
    missed_bytes_per_token: float
    hit_rate: float | None
    foreseen_used_share: float | None
    gigabytes_per_second: float
    reading_gigabytes_per_second: float | None
    storage_share: float | None
    wait_share: float
    stage_milliseconds: Mapping[str, float]
    ceiling: Ceiling | None

    @classmethod
    def of(cls, condition: Condition, phase: Phase, samples: Sequence[Sample], limit: float | None = None) -> "Figures":
        """Condense at least one sample; `limit` is the storage's, in GB/s, None where it was not measured."""
        rates = [sample.tokens / sample.seconds for sample in samples]
        counts = [sample.counts for sample in samples]
        first = median(sample.opening_seconds + sample.seconds for sample in samples)
        return cls(
            condition=condition,
            phase=phase,
            repetitions=len(samples),
            tokens_per_second=median(rates),
            slowest=min(rates),
            fastest=max(rates),
            first_token_seconds=first if phase == "prompt" else None,
            bytes_per_token=median(sample.counts.bytes_read / sample.tokens for sample in samples),
            missed_bytes_per_token=median(sample.counts.missed_bytes / sample.tokens for sample in samples),
            hit_rate=_median(share(each.slot_hits, each.missed) for each in counts),
            foreseen_used_share=_median(
                share(each.foreseen_used, each.foreseen - each.foreseen_used) for each in counts
            ),
            gigabytes_per_second=median(sample.counts.bytes_read / sample.seconds / 1e9 for sample in samples),
            reading_gigabytes_per_second=_median(_reading_rate(each) for each in counts),
            storage_share=_median(_storage_share(sample) for sample in samples),
            wait_share=median(sample.counts.wait_seconds / sample.seconds for sample in samples),
            stage_milliseconds=_stages(samples),
            ceiling=None if limit is None else Ceiling.of(samples, limit),
        )


def share(part: int, rest: int) -> float | None:
    """part / (part + rest), such as the hit rate of slot hits and records read; None when there was neither."""
    return part / (part + rest) if part + rest else None


def _stages(samples: Sequence[Sample]) -> dict[str, float]:
    """Milliseconds per token by stage."""
    names = samples[0].counts.stages
    return {name: median(1e3 * each.counts.stages[name] / each.tokens for each in samples) for name in names}


def _reading_rate(counts: Counts) -> float | None:
    return counts.bytes_read / counts.read_seconds / 1e9 if counts.read_seconds else None


def _storage_share(sample: Sample) -> float | None:
    """Which part of the bytes read came from storage; the rest were in the page cache."""
    if sample.storage_bytes is None or not sample.counts.bytes_read:
        return None
    return min(1.0, sample.storage_bytes / sample.counts.bytes_read)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
