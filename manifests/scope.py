"""Which part of a pack a verification reads: all, nothing big, a slice of its records, or a share of them.

Records are numbered layer by layer; the trunk, which cannot be checked in parts, is one more after the last. Every
other file is small and always read.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from .errors import UsageError
from .sampling import drawn, parse_percent, share_of

MOST_SLICES = 1_000_000
_SLICE = re.compile(r"(\d{1,7})/(\d{1,7})")


@dataclass(frozen=True)
class Full:
    """Every byte."""

    name = "full"

    def chosen(self, count: int) -> Sequence[int]:
        """All of `count`."""
        return range(count)


@dataclass(frozen=True)
class Quick:
    """Structure, sizes and small files; no record, and of the trunk only its size."""

    name = "quick"

    def chosen(self, count: int) -> Sequence[int]:
        """None of `count`."""
        return range(0)


@dataclass(frozen=True)
class Slice:
    """The n-th of t slices, n from 1 on; each record is in exactly one, and layers are spread over all."""

    part: int
    parts: int

    @property
    def name(self) -> str:
        """As it is written."""
        return f"{self.part}/{self.parts}"

    def chosen(self, count: int) -> Sequence[int]:
        """Every t-th of `count`."""
        return range(self.part - 1, count, self.parts)


@dataclass(frozen=True)
class Share:
    """So many percent, drawn by a seed."""

    percent: Fraction
    seed: int

    @property
    def name(self) -> str:
        """As it is written, and the seed."""
        return f"{float(self.percent):g}% by seed {self.seed}"

    def chosen(self, count: int) -> Sequence[int]:
        """That share of `count`, at least one."""
        return drawn(count, share_of(count, self.percent), self.seed)


Scope: TypeAlias = Full | Quick | Slice | Share


def parse_subset(text: str, seed: int | None) -> Slice | Share:
    """The subset of a text such as "3/7" or "5%". Raises UsageError for any other, and for a seed of a slice."""
    match = _SLICE.fullmatch(text.strip())
    if match is None:
        try:
            return Share(parse_percent(text), seed or 0)
        except UsageError:
            raise UsageError(f"{text!r} is no subset; write one such as 3/7 or 5%") from None
    part, parts = int(match[1]), int(match[2])
    if parts > MOST_SLICES:
        raise UsageError(f"{text!r} is no subset: there are at most {MOST_SLICES} slices")
    if not 1 <= part <= parts:
        raise UsageError(f"{text!r} is no subset: of {parts} slices, the first is 1/{parts}, the last {parts}/{parts}")
    if seed is not None:
        raise UsageError(f"{text} is drawn by no seed, as a share such as 5% is; leave --seed out")
    return Slice(part, parts)
