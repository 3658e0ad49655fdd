"""Reading ahead in a sweep: which records are read next, how many together, and which slots they may take.

Free slots are taken as they are. Slots with records that decoding may still want are only given up until `window`
records of the sweep are ahead, for the disk would idle with fewer; a sweep that has used a record gives up that one
first (it is the coldest), so passing over all experts costs the cache no more than the window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .arrivals import Arrivals
from .cache import Cache, Key
from .slots import Bytes

COALESCED_BYTES = 16 * 1000 * 1000  # of neighbouring records in one read, at most
AHEAD_BYTES = 64 * 1000 * 1000  # under way or waiting for their turn; disks are at their fastest with less
PROTECTED = 0.75  # of the slots, where that leaves enough for a read for each of the disk's threads


@dataclass(frozen=True)
class Reach:
    """How far a sweep reads ahead: `window` records, up to `group` neighbours in one read."""

    window: int
    group: int

    @classmethod
    def of(cls, stride: int, slots: int, depth: int) -> "Reach":
        """For records of `stride` bytes, so that `depth` reads are under way while another's records are computed."""
        spare = min(AHEAD_BYTES // stride, int((1.0 - PROTECTED) * slots))
        window = min(slots, max(depth + 1, spare))
        return cls(window, max(1, min(COALESCED_BYTES // stride, window // (depth + 1))))


class Ahead:
    """Reads the records in `queue` in order: those before `_next` are in slots or arriving. `fetched` gains them."""

    def __init__(self, queue: Sequence[Key], fetched: set[Key], cache: Cache, arrivals: Arrivals, reach: Reach) -> None:
        self._queue = queue
        self._fetched = fetched
        self._cache = cache
        self._arrivals = arrivals
        self._reach = reach
        self._next = 0
        self._own: set[Key] = set()  # what it read itself
        self._held = 0  # slots of those that are not used yet
        self._later = [index for index, key in enumerate(queue) if self._has(key)]

    def extend(self) -> None:
        """Start what reads there is room for."""
        for run in self._runs():
            slots = self._slots(len(run))
            if not slots:
                return
            started = run[: len(slots)]
            self._arrivals.start(started, slots, urgent=True)
            self._own.update(started)
            self._fetched.update(started)
            self._next += len(started)

    def leave(self, key: Key) -> None:
        """A record has been used and may make room."""
        self._held -= key in self._own
        self._cache.unpin(key)

    def _runs(self) -> Iterator[list[Key]]:
        """The missing records from `_next` on, in runs that one read can bring."""
        while self._next < len(self._queue):
            run: list[Key] = []
            for key in self._queue[self._next : self._next + self._reach.group]:
                if self._has(key) or (run and key[1] != run[-1][1] + 1):
                    break
                run.append(key)
            if run:
                yield run
            else:
                self._next += 1

    def _has(self, key: Key) -> bool:
        return key in self._cache.records or key in self._arrivals

    def _slots(self, wanted: int) -> list[Bytes]:
        """Slots for a read of `wanted` records; none rather than a few, while other reads are ahead."""
        if self._held and len(self._cache.free) + self._reach.window - self._held < wanted:
            return []
        slots: list[Bytes] = []
        while len(slots) < wanted and (slot := self._room()) is not None:
            slots.append(slot)
        return slots

    def _room(self) -> Bytes | None:
        if not self._cache.free and self._held >= self._reach.window:
            return None
        slot = self._cache.room()
        if slot is None and self._later and self._later[-1] > self._next:
            slot = self._slot_of_last()
        self._held += slot is not None
        return slot

    def _slot_of_last(self) -> Bytes | None:
        """That of the record which is needed last and will be read again; None while it arrives."""
        key = self._queue[self._later[-1]]
        if key not in self._cache.records:
            return None
        self._later.pop()
        return self._cache.drop(key)
