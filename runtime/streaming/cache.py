"""The cache: which record is in which slot, and whose slot is given away next.

One policy for everything, aged frequency (LRFU; Lee et al., IEEE Transactions on Computers 50(12), 2001): the heat of a
record is the sum over its uses of 2^(-age / HALF_LIFE), age in tokens, and the coldest record makes room, counting as
colder the later its layer's turn comes: what the layer just visited does not want, it cannot want before the next
token. Over recorded routing (tests/extended/policies.py) it beats least recently used, by layer or over all, at every
number of slots, and aged frequency alone by two of 100 hits; over imitated routing of a large model it beats or equals
both. It needs no special case for fewer slots than one token's experts: those would chase each other through a
least-recently-used list. Heat outlives a record's stay, so a record that was read for a prompt's sake only is the first
to go, and a sweep over all experts flushes nothing that decoding found hot.

Knows nothing of reads. Not thread-safe.
"""

import heapq
import math
from collections.abc import Collection, Iterable
from typing import TypeAlias

from .slots import Bytes

Key: TypeAlias = tuple[int, int]  # (layer, expert)

HALF_LIFE = 8.0  # tokens until a use counts half: 16 to 64 are better for small models, 4 for large ones
FARTHEST = 2.0  # halvings that waiting for a whole token costs a record: 1 does for small models, 4 for large ones

Entry: TypeAlias = tuple[float, int, Key]  # heat, or less; minus the stamp


class Cache:
    """Whole records of so many `layers` in slots. `pin` says which ones stay for now; the rest may be evicted."""

    def __init__(self, slots: Iterable[Bytes], layers: int) -> None:
        self.slots = tuple(slots)
        self.free = list(self.slots)
        self.records: dict[Key, Bytes] = {}
        self._heat: dict[Key, float] = {}
        self._stamps: dict[Key, int] = {}
        self._heaps: list[list[Entry]] = [[] for _ in range(layers)]  # of lower bounds: heat only ever rises
        self._aside: dict[Key, Entry] = {}  # pinned records that would have been next
        self._pinned: set[Key] = set()
        self._here = 0  # the layer that is visited
        self._stamp = 0

    def use(self, key: Key, token: float, times: float = 1.0) -> None:
        """A record, in a slot or not, is used so many `times` for token number `token` of its layer."""
        use = token / HALF_LIFE + math.log2(times)
        old = self._heat.get(key)
        self._heat[key] = use if old is None else max(old, use) + math.log2(1.0 + 2.0 ** -abs(old - use))

    def pin(self, keys: Collection[Key]) -> None:
        """A layer wants these records: they stay until they are unpinned; those that were pinned before may go."""
        for entry in self._aside.values():
            self._push(entry)
        self._aside.clear()
        self._pinned = set(keys)
        self._here = next((layer for layer, _ in keys), self._here)

    def unpin(self, key: Key) -> None:
        """This record may go."""
        self._pinned.discard(key)
        entry = self._aside.pop(key, None)
        if entry is not None:
            self._push(entry)

    def put(self, key: Key, slot: Bytes) -> None:
        """The slot now holds a record, whole and checked."""
        self._enter(key)
        self.records[key] = slot

    def drop(self, key: Key) -> Bytes:
        """Take a record's slot away."""
        self._stamps.pop(key, None)
        return self.records.pop(key)

    def room(self) -> Bytes | None:
        """A slot: a free one, or else the coldest record's; None while all records are pinned or arriving."""
        if self.free:
            return self.free.pop()
        key = self.coldest()
        return None if key is None else self.drop(key)

    def coldest(self, kept: Collection[Key] = (), here: int | None = None) -> Key | None:
        """The record to evict next, that is neither pinned nor among `kept`; None if all are.

        `here` is the layer whose records are wanted, if not the one that is visited.
        """
        skipped: list[Entry] = []
        chosen = None
        while chosen is None and (heap := self._likeliest(self._here if here is None else here)):
            chosen = self._first(heap, kept, skipped)
        for entry in skipped:
            self._push(entry)
        return chosen

    def _likeliest(self, here: int) -> list[Entry]:
        """The heap of the layer whose first record goes next, by what is known of its heat; empty if all are."""
        step, layers = FARTHEST / len(self._heaps), len(self._heaps)
        bounds = (
            (heap[0][0] - step * ((layer - here - 1) % layers + 1), layer)
            for layer, heap in enumerate(self._heaps)
            if heap
        )
        return self._heaps[min(bounds)[1]] if any(self._heaps) else []

    def _first(self, heap: list[Entry], kept: Collection[Key], skipped: list[Entry]) -> Key | None:
        """The first record of a heap, if it may go and is as cold as it seems; else the heap is nearer the truth."""
        heat, stamp, key = heap[0]
        if self._stamps.get(key) != -stamp:
            heapq.heappop(heap)  # it has left
        elif heat < self._heat.get(key, -math.inf):
            heapq.heapreplace(heap, (self._heat[key], stamp, key))
        elif key in self._pinned:
            self._aside[key] = heapq.heappop(heap)
        elif key in kept:
            skipped.append(heapq.heappop(heap))
        else:
            return key
        return None

    def recover(self) -> None:
        """Every slot without a whole record is free again, wherever an interrupt struck."""
        held = {id(slot) for slot in self.records.values()}
        self.free = [slot for slot in self.slots if id(slot) not in held]
        self._heaps, self._aside, self._pinned = [[] for _ in self._heaps], {}, set()
        for key in self.records:
            self._enter(key)

    def _enter(self, key: Key) -> None:
        """Newer ones first among the equally cold: a sweep then gives up what it read last, and keeps a part whole."""
        self._stamp += 1
        self._stamps[key] = self._stamp
        self._push((self._heat.get(key, -math.inf), -self._stamp, key))

    def _push(self, entry: Entry) -> None:
        heapq.heappush(self._heaps[entry[2][0]], entry)
