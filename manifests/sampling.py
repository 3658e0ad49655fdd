"""Choosing some of many by a number: the same on every machine and in every version, since no library's is used."""

import heapq
import math
from fractions import Fraction

from .errors import UsageError

_MASK = 2**64 - 1


def drawn(count: int, wanted: int, seed: int) -> list[int]:
    """`wanted` different numbers below `count`, in order: those whose hashes with the seed are smallest."""
    start = _mixed(seed & _MASK)
    smallest = heapq.nsmallest(wanted, range(count), key=lambda index: (_mixed(start ^ index), index))
    return sorted(smallest)


def share_of(count: int, percent: Fraction) -> int:
    """How many of `count` are so many percent: rounded up, so that it is never none."""
    return math.ceil(count * percent / 100)


def parse_percent(text: str) -> Fraction:
    """The number in a text such as "5%" or "0.5%". Raises UsageError for any other, and outside (0, 100]."""
    digits, _, rest = text.strip().partition("%")
    whole, _, decimals = digits.partition(".")
    plain = (whole + decimals).isascii() and (whole + decimals).isdigit() and len(digits) <= 12
    value = Fraction(digits) if plain and whole and not rest else Fraction(0)
    if not text.strip().endswith("%") or not 0 < value <= 100:
        raise UsageError(f"{text!r} is not a share; write one such as 5% or 0.5%")
    return value


def _mixed(value: int) -> int:
    """The finalizer of splitmix64: every bit of the value reaches every bit of the result."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
