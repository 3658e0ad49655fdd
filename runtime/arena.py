"""Anonymous memory in one piece on huge pages: reads into it and products from it cost fewer address translations.

Owns no policy: what lies in an arena, and whether it is locked, is its users' business.
"""

import mmap
from collections.abc import Sequence

import numpy as np

from .backends.base import Record

HUGE_PAGE = 2 * 1024 * 1024
CACHE_LINE = 64


def reserve(size: int) -> Record:
    """`size` bytes of zeros, uint8 [size], from the start of a huge page; memory is taken where first written."""
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % HUGE_PAGE
    return whole[start : start + size]


def packed(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where things of these sizes start when laid side by side, each on a cache line; and the size of all."""
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += -(-size // CACHE_LINE) * CACHE_LINE
    return starts, end
