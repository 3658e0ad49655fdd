"""What this machine delivers, measured in about a second each: its memory and its expert kernels (see disk for disks).

All in GB/s (10^9 bytes), for forecasts. Everything is read that the kernels read while decoding, out of the caches.
"""

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..layout.reader import Pack
from . import _native, arena, host
from .backends.base import HostBackend

BUFFER_BYTES = 512 * 1024 * 1024  # no cache holds it
LEAST_SECONDS = 0.5
ROUNDS = 5


class Disk(Protocol):
    """How records are read from a disk and how fast that was; see disk.Tuning."""

    @property
    def access(self) -> str:
        """How files are opened: "buffered" or "direct"."""

    @property
    def depth(self) -> int:
        """Reads under way at once."""

    @property
    def split(self) -> int:
        """Pieces that one record is read in."""

    @property
    def gigabytes_per_second(self) -> float | None:
        """What random records reached."""

    @property
    def measured(self) -> bool:
        """Whether that was measured on this disk."""


def memory_bandwidth(threads: int) -> float:
    """The best of a few rounds in which all threads read a large buffer once."""
    pool = _native.Pool(threads)
    memory = arena.reserve(min(BUFFER_BYTES, host.memory_free() // 4))
    memory[:] = 1  # pages of zeros would all be one
    return max(_native.read_bandwidth(pool, memory) for _ in range(ROUNDS)) / 1e9


def kernel_bandwidth(pack: Pack, backend: HostBackend) -> float:
    """Bytes of expert records computed with per second, one token's at a time, each record long out of the caches."""
    model, stride = pack.model, pack.records[0].stride
    layout, at_once = backend.layout(pack.records[0]), model.num_experts_per_tok
    count = records_to_visit(pack, at_once)
    records = [pack.read_record(0, expert) for expert in range(count)]
    x = backend.vector(np.random.Generator(np.random.PCG64(0)).standard_normal((1, model.hidden_size), np.float32))
    out = backend.zeros(at_once, model.hidden_size)

    def visit_all() -> None:
        for first in range(0, count, at_once):
            chosen = records[first : first + at_once]
            backend.experts(x, chosen, layout, [[0]] * len(chosen), out)

    return count * stride / seconds(visit_all) / 1e9


def records_to_visit(pack: Pack, at_once: int) -> int:
    """As many of a layer's records as no cache holds, if there are so many; at least one token's."""
    return min(pack.model.num_experts, max(at_once, BUFFER_BYTES // 4 // pack.records[0].stride))


def seconds(work: Callable[[], None]) -> float:
    """How long `work` takes on average, once it is warm."""
    work()
    start, done = time.perf_counter(), 0
    while (took := time.perf_counter() - start) < LEAST_SECONDS or not done:
        work()
        done += 1
    return took / done
