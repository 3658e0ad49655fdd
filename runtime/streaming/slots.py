"""Slots: the memory that expert records are read into, aligned so that disks and kernels are at their fastest."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...layout.reader import Pack
from ..arena import HUGE_PAGE, reserve

Bytes: TypeAlias = NDArray[np.uint8]


def slot_pitch(pack: Pack) -> int:
    """Bytes from one slot to the next: the largest stride, in whole huge pages if that wastes less than an eighth."""
    stride = max(record.stride for record in pack.records)
    aligned = -(-stride // HUGE_PAGE) * HUGE_PAGE
    return aligned if aligned - stride < aligned // 8 else stride


def slot_arena(count: int, pitch: int) -> list[Bytes]:
    """Slots side by side, from the start of a huge page."""
    memory = reserve(count * pitch)
    return [memory[i * pitch : (i + 1) * pitch] for i in range(count)]
