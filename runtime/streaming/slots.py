"""Slots: the memory that expert records are read into, aligned so that disks and kernels are at their fastest."""

import mmap
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...layout.reader import Pack

Bytes: TypeAlias = NDArray[np.uint8]

HUGE_PAGE = 2 * 1024 * 1024  # aligned destinations make reads faster: fewer translations, larger transfers


def slot_pitch(pack: Pack) -> int:
    """Bytes from one slot to the next: the largest stride, in whole huge pages if that wastes less than an eighth."""
    stride = max(record.stride for record in pack.records)
    aligned = -(-stride // HUGE_PAGE) * HUGE_PAGE
    return aligned if aligned - stride < aligned // 8 else stride


def slot_arena(count: int, pitch: int) -> list[Bytes]:
    """Slots side by side in anonymous memory that starts on a huge page."""
    memory = mmap.mmap(-1, count * pitch + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    arena = np.frombuffer(memory, np.uint8)
    start = -arena.ctypes.data % HUGE_PAGE
    return [arena[start + i * pitch : start + (i + 1) * pitch] for i in range(count)]
