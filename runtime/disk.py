"""How a disk is read fastest: found by a short measurement when a pack is first used on it, and remembered.

Random records of the pack itself are read into memory like the slots', through the page cache (emptied of them first)
and around it, with more and fewer reads at once, in one piece and in several. Reading around the page cache is chosen
unless it is clearly slower: then the slots are the only cache. What was found is kept by disk and record size in
$XDG_CACHE_HOME/moepack/disks.json (~/.cache without it); a file that cannot be read or written only costs the
measurement. The same trials give the limit that a benchmark holds an engine against.
"""

import os
import random
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import msgspec

from ..layout import atomic
from ..layout.reader import Pack
from ..manifests.errors import MoepackError, StorageError
from ..manifests.files import read_small
from . import _native
from .streaming.files import Access, LayerFiles
from .streaming.slots import slot_arena, slot_pitch

SMALL = 64 * 1000 * 1000  # bytes of experts that are read faster than a measurement takes
TRIAL_SECONDS = 0.1
ROUNDS = 2
WORTH = 0.93  # of the fastest way's speed: the first way in the list that reaches it is taken
MOST = 64  # reads at once, and pieces
MOST_STORED = 1_000_000  # bytes of the file in which disks are remembered
CAN_EMPTY = hasattr(os, "posix_fadvise")  # the page cache of a file; where it cannot, it would be what is measured


@dataclass(frozen=True)
class Tuning:
    """How to read records.

    `depth`: reads under way at once. `split`: pieces that one record is read in, side by side.
    `gigabytes_per_second` (10^9 bytes): what random records reached this way, None where nothing was measured.
    """

    access: Access
    depth: int
    split: int
    gigabytes_per_second: float | None
    measured: bool

    def __post_init__(self) -> None:
        if not (1 <= self.depth <= MOST and 1 <= self.split <= MOST):
            raise ValueError(f"depth {self.depth} and split {self.split} must be of 1 to {MOST}")


DEFAULT = Tuning("buffered", 4, 1, None, measured=False)
DIRECT = replace(DEFAULT, access="direct")
WAYS = (  # to read, the preferred first: with few at once records arrive one by one, and are checked and used meanwhile
    replace(DIRECT, depth=2),
    DIRECT,
    replace(DIRECT, depth=8),
    replace(DIRECT, depth=16),
    replace(DIRECT, split=2),
    replace(DIRECT, split=4),
    DEFAULT,
    replace(DEFAULT, depth=8),
)


def known(pack: Pack) -> Tuning | None:
    """What was found for packs like this one on its disk, or None."""
    return _remembered(_store()).get(_disk(pack))


def tune(pack: Pack) -> Tuning:
    """What was found, or is found now in one or two seconds; `DEFAULT` for a pack too small to be worth it.

    Raises StorageError as LayerFiles does.
    """
    if pack.expert_bytes < SMALL:
        return DEFAULT
    if (found := known(pack)) is None:
        found = measure(pack)
        _remember(_store(), _disk(pack), found)
    return found


def measure(pack: Pack) -> Tuning:
    """The way that reads random records of a pack fastest, nearly; nothing is remembered. Needs 16 slots of memory."""
    speeds = _speeds(pack)
    return _choice(list(speeds), list(speeds.values()))


def limit(pack: Pack) -> float:
    """GB/s (10^9 bytes) of random records, read the fastest way there is: what an engine is held against.

    Nothing is checked, kept or computed meanwhile. Takes as long and as much memory as `measure`. Raises StorageError
    if no record can be read.
    """
    if not (fastest := max(_speeds(pack).values())):
        raise StorageError(f"{pack.path}: its layer files cannot be read; check the disk, then run moe-pack verify")
    return fastest


def _speeds(pack: Pack) -> dict[Tuning, float]:
    """GB/s of all ways that can be measured here, which take turns."""
    with closing(LayerFiles(pack, "buffered")) as buffered, closing(LayerFiles(pack, "direct")) as direct:
        files = {direct.access: direct, **({"buffered": buffered} if CAN_EMPTY else {})}
        ways = [way for way in WAYS if way.access in files]
        trials = _Trials(pack, max(way.depth for way in ways))
        rounds = [[trials.speed(files[way.access], way) for way in ways] for _ in range(ROUNDS)]
    return {way: sum(speeds) / ROUNDS for way, *speeds in zip(ways, *rounds, strict=True)}


def _choice(ways: Sequence[Tuning], speeds: Sequence[float]) -> Tuning:
    """The first way that is fast enough; the preferred one, not measured, if no way could read at all."""
    if max(speeds) == 0:
        return ways[0]
    chosen = next(index for index, speed in enumerate(speeds) if speed >= WORTH * max(speeds))
    return replace(ways[chosen], gigabytes_per_second=round(speeds[chosen], 3), measured=True)


class _Trials:
    """Reads each record of a pack once before any a second time, in an order that has nothing to do with the disk's."""

    def __init__(self, pack: Pack, slots: int) -> None:
        keys = [(layer, expert) for layer in range(pack.model.num_layers) for expert in range(pack.model.num_experts)]
        random.shuffle(keys)  # each time anew: what was read a moment ago may be in some cache below the system's
        self._keys = cycle(keys)
        self._pack = pack
        self._slots = slot_arena(slots, slot_pitch(pack))

    def speed(self, files: LayerFiles, way: Tuning) -> float:
        """GB/s (10^9 bytes) of one way, always with `depth` reads asked for. A failed read brings nothing."""
        got, under_way, start = 0, way.depth, time.perf_counter()
        with closing(_native.ReadPool(way.depth)) as pool:
            for index in range(way.depth):
                self._submit(pool, index, files, way)
            while under_way and (arrival := pool.next()) is not None:
                got += arrival[1]
                if time.perf_counter() - start < TRIAL_SECONDS:
                    self._submit(pool, arrival[0], files, way)
                else:
                    under_way -= 1
        return got / (time.perf_counter() - start) / 1e9

    def _submit(self, pool: _native.ReadPool, index: int, files: LayerFiles, way: Tuning) -> None:
        """Start reading the next record into a slot; pages of it that the system has are dropped, before and after."""
        layer, expert = next(self._keys)
        address, descriptor = self._pack.address(layer, expert), files.descriptor(layer)
        cached = files.access == "buffered"
        if cached:
            os.posix_fadvise(descriptor, address.offset, address.size, os.POSIX_FADV_DONTNEED)
        place = self._slots[index][: address.size]
        pool.submit(index, descriptor, address.offset, [place], pieces=way.split, forget=cached)


def _disk(pack: Pack) -> str:
    """A name for the disk that a pack is on, and for the size of its records."""
    descriptor = pack.address(0, 0).fd
    return f"{os.fstat(descriptor).st_dev}-{os.fstatvfs(descriptor).f_fsid}-{slot_pitch(pack)}"


def _store() -> Path:
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "moepack" / "disks.json"


def _remembered(store: Path) -> dict[str, Tuning]:
    try:
        return msgspec.json.decode(read_small(store, MOST_STORED), type=dict[str, Tuning])
    except (MoepackError, msgspec.MsgspecError, OSError):
        return {}


def _remember(store: Path, disk: str, tuning: Tuning) -> None:
    """Add to the store, whole or not at all; without it the next run measures again."""
    content = msgspec.json.format(msgspec.json.encode({**_remembered(store), disk: tuning}))
    try:
        atomic.make_folders(store.parent)
        atomic.replace(store, content)
    except (MoepackError, OSError):
        pass
