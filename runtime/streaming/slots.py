"""Slots: the memory that expert records are read into, aligned so that disks and kernels are at their fastest."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...layout.reader import Pack
from ..arena import HOST, HUGE_PAGE
from ..backends.base import Memory

Bytes: TypeAlias = NDArray[np.uint8]


def slot_pitch(pack: Pack) -> int:
    """Bytes from one slot to the next: the largest stride, in whole huge pages if that wastes less than an eighth."""
    stride = max(record.stride for record in pack.records)
    aligned = -(-stride // HUGE_PAGE) * HUGE_PAGE
    return aligned if aligned - stride < aligned // 8 else stride


def slot_arena(count: int, pitch: int, memory: Memory = HOST) -> list[Bytes]:
    """Slots side by side in as few pieces of `memory` as it allows, each from the start of a huge page."""
    at_once = max(1, memory.most // pitch)
    pieces = (min(at_once, count - first) for first in range(0, count, at_once))
    return [slot for slots in pieces for slot in memory.reserve(slots * pitch).reshape(slots, pitch)]
