"""Anonymous memory in large pieces on huge pages: reads into it and products from it cost fewer address translations.

Owns no policy: what lies in an arena, and whether it is locked, is its users' business.
"""

import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .backends.base import Record

HUGE_PAGE = 2 * 1024 * 1024
CACHE_LINE = 64


class HostMemory:
    """Memory for kernels of the CPU, of any size; see backends.base.Memory."""

    most = sys.maxsize

    def reserve(self, size: int) -> Record:
        """`size` bytes of zeros, uint8 [size], from the start of a huge page."""
        return reserve(size)


HOST = HostMemory()


@dataclass(frozen=True)
class Packing:
    """Where things lie that were laid side by side: (piece, start) of each, and the sizes of the pieces."""

    places: tuple[tuple[int, int], ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, groups: Sequence[Sequence[int]], most: int) -> "Packing":
        """Groups of things of these sizes, each thing on a cache line and no group in two pieces of at most `most`.

        A group that is larger has a piece of its own.
        """
        places, sizes = [], [0]
        for group in groups:
            if sizes[-1] and sizes[-1] + sum(map(_lines, group)) > most:
                sizes.append(0)
            for size in group:
                places.append((len(sizes) - 1, sizes[-1]))
                sizes[-1] += _lines(size)
        return cls(tuple(places), tuple(sizes))


def reserve(size: int) -> Record:
    """`size` bytes of zeros, uint8 [size], from the start of a huge page; memory is taken where first written."""
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % HUGE_PAGE
    return whole[start : start + size]


def occupied(size: int) -> int:
    """Memory that an arena of `size` bytes takes once all of it was written: whole huge pages."""
    return -(-size // HUGE_PAGE) * HUGE_PAGE


def _lines(size: int) -> int:
    """`size` in whole cache lines."""
    return -(-size // CACHE_LINE) * CACHE_LINE
