"""The cache: which record is in which slot, and whose slot is given away next.

One policy for everything, aged frequency (LRFU; Lee et al., IEEE Transactions on Computers 50(12), 2001): the heat of
a record is the sum over its uses of 2^(-age / HALF_LIFE), age in tokens, and the coldest record makes room, whatever
its layer. Over recorded routing it beats least recently used, by layer or over all, at every number of slots
(tests/extended/policies.py), and it needs no special case where there are fewer slots than one token's experts: those
would chase each other through a least-recently-used list. Heat outlives a record's stay, so a record that was read
for a prompt's sake only is the first to go, and a sweep over all experts flushes nothing that decoding found hot.

Knows nothing of reads. Not thread-safe.
"""

import heapq
import math
from collections.abc import Collection, Iterable
from typing import TypeAlias

from .slots import Bytes

Key: TypeAlias = tuple[int, int]  # (layer, expert)

HALF_LIFE = 8.0  # tokens until a use counts half


class Cache:
    """Whole records in slots. `pin` says which ones stay for now; the rest may be evicted."""

    def __init__(self, slots: Iterable[Bytes]) -> None:
        self.slots = tuple(slots)
        self.free = list(self.slots)
        self.records: dict[Key, Bytes] = {}
        self._heat: dict[Key, float] = {}
        self._stamps: dict[Key, int] = {}
        self._coldest: list[tuple[float, int, Key]] = []  # a heap of lower bounds: heat only ever rises
        self._aside: dict[Key, tuple[float, int, Key]] = {}  # pinned records that would have been next
        self._pinned: set[Key] = set()
        self._stamp = 0

    def use(self, key: Key, token: int, times: float = 1.0) -> None:
        """A record, in a slot or not, is used so many `times` for token number `token` of its layer."""
        use = token / HALF_LIFE + math.log2(times)
        old = self._heat.get(key)
        self._heat[key] = use if old is None else max(old, use) + math.log2(1.0 + 2.0 ** -abs(old - use))

    def pin(self, keys: Collection[Key]) -> None:
        """These records stay until they are unpinned; those that were pinned before may go."""
        for entry in self._aside.values():
            heapq.heappush(self._coldest, entry)
        self._aside.clear()
        self._pinned = set(keys)

    def unpin(self, key: Key) -> None:
        """This record may go."""
        self._pinned.discard(key)
        entry = self._aside.pop(key, None)
        if entry is not None:
            heapq.heappush(self._coldest, entry)

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

    def coldest(self, kept: Collection[Key] = ()) -> Key | None:
        """The record to evict next: the coldest that is neither pinned nor among `kept`; None if all are."""
        skipped = []
        while self._coldest:
            heat, stamp, key = entry = self._coldest[0]
            if self._stamps.get(key) != -stamp:
                heapq.heappop(self._coldest)  # it has left
            elif heat < self._heat.get(key, -math.inf):
                heapq.heapreplace(self._coldest, (self._heat[key], stamp, key))
            elif key in self._pinned:
                self._aside[key] = heapq.heappop(self._coldest)
            elif key in kept:
                skipped.append(heapq.heappop(self._coldest))
            else:
                break
        chosen = entry[2] if self._coldest else None
        for entry in skipped:
            heapq.heappush(self._coldest, entry)
        return chosen

    def recover(self) -> None:
        """Every slot without a whole record is free again, wherever an interrupt struck."""
        held = {id(slot) for slot in self.records.values()}
        self.free = [slot for slot in self.slots if id(slot) not in held]
        self._coldest, self._aside, self._pinned = [], {}, set()
        for key in self.records:
            self._enter(key)

    def _enter(self, key: Key) -> None:
        """Newer ones first among the equally cold: a sweep then gives up what it read last, and keeps a part whole."""
        self._stamp += 1
        self._stamps[key] = self._stamp
        heapq.heappush(self._coldest, (self._heat.get(key, -math.inf), -self._stamp, key))
