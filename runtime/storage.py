"""What the storage delivers at most: random records of a pack, several at once, past the page cache where possible.

A limit to hold an engine against, measured apart from it: no digests, no slots, nothing computed meanwhile.
"""

import fcntl
import mmap
import os
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from ..layout.reader import Pack
from ..manifests.errors import StorageError

DEPTHS = (2, 4, 8)  # reads under way at once: disks differ in how many they need
SECONDS = 0.3  # for each depth
F_NOCACHE = 48  # of macOS, whose Python names it only there


def random_read_rate(pack: Pack, seed: int = 0) -> float:
    """GB/s (10^9 bytes) of whole random records, at the best of DEPTHS. Takes about SECONDS for each.

    Raises StorageError if a record cannot be read.
    """
    with ExitStack() as files:
        layers = [files.enter_context(_Layer(pack.path / layer.file)) for layer in pack.manifest.layers]
        return max(_rate(pack, layers, depth, seed) for depth in DEPTHS)


class _Layer:
    """One layer's file, opened so that reads come from the storage."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._direct = True
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECT", 0))
        except OSError:  # a filesystem without direct access
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._direct = False
        if sys.platform == "darwin":
            fcntl.fcntl(self._descriptor, F_NOCACHE, 1)

    def read(self, offset: int, to: memoryview) -> None:
        if not self._direct:
            os.posix_fadvise(self._descriptor, offset, len(to), os.POSIX_FADV_DONTNEED)
        try:
            got = os.preadv(self._descriptor, [to], offset)
        except OSError as error:
            raise StorageError(f"{self._path} cannot be read: {error.strerror}; check the disk") from error
        if got < len(to):
            raise StorageError(f"{self._path} ends after {offset + got} bytes; moe-pack verify shows all damage")

    def __enter__(self) -> "_Layer":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _rate(pack: Pack, layers: list[_Layer], depth: int, seed: int) -> float:
    """Bytes that `depth` threads read until the time is over, by the time it took."""
    start = time.perf_counter()
    with ThreadPoolExecutor(depth) as threads:
        read = threads.map(lambda thread: _read_until(pack, layers, start + SECONDS, seed + thread), range(depth))
        return sum(read) / (time.perf_counter() - start) / 1e9


def _read_until(pack: Pack, layers: list[_Layer], end: float, seed: int) -> int:
    """One thread: at least one record, into memory of its own, which starts on a page."""
    total = 0
    with mmap.mmap(-1, max(record.stride for record in pack.records)) as buffer, memoryview(buffer) as memory:
        for layer, offset, size in _places(pack, seed):
            with memory[:size] as to:
                layers[layer].read(offset, to)
            total += size
            if time.perf_counter() >= end:
                break
    return total


def _places(pack: Pack, seed: int) -> Iterator[tuple[int, int, int]]:
    """Layer, offset and bytes of random records, for ever."""
    drawn = random.Random(seed)
    while True:
        layer = drawn.randrange(pack.model.num_layers)
        address = pack.address(layer, drawn.randrange(pack.model.num_experts))
        yield layer, address.offset, address.size
