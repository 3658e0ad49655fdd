"""Expert streaming: records read from disk into a fixed set of slots, checked, and handed out as the engine needs them.

Decoding asks for `batches`: what is in memory first, the rest as it arrives. Sweeps over many experts ask for
`records`: in order, with large reads ahead. `foresee` reads what a later layer will probably want, while the disk has
nothing else to do; `fill` reads whatever is missing into free slots, while nothing is computed. Which records happen to
be in memory changes speed only: every record is the bytes whose digest the pack states, or there is an error and no
token: decoding computes with records that are still being checked, and `confirm` says, before anything comes of it,
that they were good. After an error nothing that was not checked is kept. One thread at a time calls.
"""

import time
import weakref
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..layout.reader import Pack
from . import _native, host
from .arena import HOST
from .backends.base import Memory
from .disk import DEFAULT, Tuning
from .streaming.ahead import Ahead, Reach
from .streaming.arrivals import Arrivals, Arrived, Manner, Reader
from .streaming.cache import HALF_LIFE, Cache, Key
from .streaming.files import Access, LayerFiles
from .streaming.filling import Filling
from .streaming.foresight import Foresight
from .streaming.slots import Bytes, slot_arena, slot_pitch

MEMORY = 32 * int(HALF_LIFE)  # tokens of a chunk that still count at its end
MOST_GUESSES = 8  # records of one layer


@dataclass
class StreamStats:
    """What streaming has cost so far.

    `hits` are records that were in a slot when their turn came; `foreseen` were read on a guess, of which
    `foreseen_used` were right (and are no hits). `wait_seconds`: the engine had nothing to compute with; `fill` waits
    for nobody. `read_seconds`: at least one read was under way.
    """

    records_read: int = 0
    bytes_read: int = 0
    hits: int = 0
    wait_seconds: float = 0.0
    read_seconds: float = 0.0
    foreseen: int = 0
    foreseen_used: int = 0


class _Visit:
    """The records of one layer that are wanted now; those in `fetched` were read for this visit."""

    def __init__(self, layer: int, experts: Sequence[int]) -> None:
        self.keys = tuple((layer, expert) for expert in experts)
        self.fetched: set[Key] = set()


class ExpertStream:
    """Hands out expert records of `pack`, keeping at most `slots` of them in memory.

    Reading and checking go on while the caller computes; `close` ends their threads.
    """

    def __init__(
        self,
        pack: Pack,
        slots: int,
        *,
        check_digests: bool = True,
        tuning: Tuning = DEFAULT,
        reader: Reader | None = None,
        memory: Memory = HOST,
    ) -> None:
        """Slots lie in `memory`. Raises StorageError if the pack's files cannot be opened as `tuning` says."""
        self._stats = StreamStats()
        self._pack = pack
        self._files = LayerFiles(pack, tuning.access)
        self._reader: Reader = reader or _native.ReadPool(tuning.depth)
        manner = Manner(tuning.split, forget=self._files.access == "buffered" and _outgrows_memory(pack))
        self._arrivals = Arrivals(pack, self._files, self._reader, manner, check_digests=check_digests)
        self._close = weakref.finalize(self, _close, self._arrivals, self._files)
        self._cache = Cache(slot_arena(slots, slot_pitch(pack), memory), pack.model.num_layers)
        self._filling = Filling(pack, self._cache, self._arrivals)
        self._foresight = Foresight()
        self._guesses: dict[Key, Key | None] = {}  # to the record that made room, if one did
        self._unchecked: dict[Key, Bytes] = {}  # whole records, of which nobody knows yet whether they are good
        self._trusted: set[Key] = set()  # those of them that were handed out
        self._depth = tuning.depth
        self._tokens = [0] * pack.model.num_layers
        self._visit: _Visit | None = None  # the one under way, or one that was cut short until `abandon`

    @property
    def access(self) -> Access:
        """How records are read: as the tuning says, unless the system refuses direct reads."""
        return self._files.access

    @property
    def stats(self) -> StreamStats:
        """The counters as they stand."""
        self._stats.read_seconds = self._reader.busy_seconds()
        return self._stats

    def hold(self, layer: int, experts: Collection[int]) -> bool:
        """Whether all of these records are in memory, checked."""
        return all((layer, expert) in self._cache.records for expert in experts)

    def batches(
        self, layer: int, experts: Sequence[int], ids: NDArray[np.int32] | None = None
    ) -> Iterator[list[tuple[int, Bytes]]]:
        """Yield (expert, record) of distinct `experts` in batches, in no particular order.

        `ids` [tokens, K] says which tokens chose them; by default it is one token that wants all.
        Reads of all that are missing go out first; then come those in memory, which may be none; then the others, at
        least one at a time, as they arrive.
        With a slot for each expert all records stay valid until the iteration ends; with fewer, a batch is valid until
        the next one is asked for. Records may be handed out before their digest was compared: what is computed with
        them must not be used until `confirm` returns. Raises StorageError if the device fails or a file ends early,
        MismatchError if bytes are found not to be the pack's, here or in a later visit.
        """
        visit = self._begin(layer, experts)
        if ids is None or len(ids) == 1:
            self._use(layer, visit.keys)
        else:
            self.learn(layer, ids)
        waiting, missing = list(visit.keys), deque(key for key in visit.keys if not self._has(key))
        try:
            first = True
            while waiting or first:
                self._settle_ready()  # it may bring a slot for what is missing
                self._request(visit, missing)
                batch = [key for key in waiting if key in self._cache.records or key in self._unchecked]
                if batch or first:
                    first = False
                    yield [self._hand_out(visit, key) for key in batch]
                    done = set(batch)
                    waiting = [key for key in waiting if key not in done]
                    self._leave(visit, batch)
                else:
                    self._settle(self._next())
            self._visit = None
        finally:
            if self._visit is visit:
                self.abandon()

    def records(self, layer: int, experts: Sequence[int], lag: int = 0) -> Iterator[tuple[int, Bytes]]:
        """Yield (expert, record) in the order of `experts`, which are distinct.

        A record is valid until the next one is asked for, or until `lag` more have been: then there must be a slot
        more than `lag`, and the last ones stay valid until another visit. While one is computed with, as many of the
        following as there are slots for are being read, neighbours on disk together. Raises as `batches` does.
        """
        visit = self._begin(layer, experts)
        reach = Reach.of(self._pack.records[layer].stride, len(self._cache.slots), self._depth)
        ahead = Ahead(visit.keys, visit.fetched, self._cache, self._arrivals, reach)
        used: deque[Key] = deque()
        try:
            with self._arrivals.checking():  # there is time: a record is computed with for long
                for key in visit.keys:
                    ahead.extend()
                    while key not in self._cache.records:
                        self._settle(self._next())
                        ahead.extend()
                    yield self._hand_out(visit, key)
                    used.append(key)
                    if len(used) > lag:
                        ahead.leave(used.popleft())
            self._visit = None
        finally:
            if self._visit is visit:
                self.abandon()

    def confirm(self) -> None:
        """Wait until all that `batches` handed out has been checked. Raises MismatchError if any of it is damaged.

        Says nothing of an iteration that was not finished.
        """
        with self._or_abandon():
            while self._trusted:
                self._settle(self._next())

    def abandon(self) -> None:
        """After an early end: no read is left behind, and every slot without a whole, checked record is free."""
        self._arrivals.abandon()
        self._unchecked.clear()
        self._trusted.clear()
        self._guesses.clear()
        self._cache.recover()
        self._visit = None

    def learn(self, layer: int, ids: NDArray[np.int32]) -> None:
        """The tokens of a chunk chose experts `ids` [tokens, K]: what decoding will want is kept from sweeps.

        `batches` learns by itself, `records` does not.
        """
        self._tokens[layer] += len(ids)
        ages = np.arange(len(ids[-MEMORY:]))[::-1]
        times = np.bincount(ids[-MEMORY:].ravel(), np.repeat(2.0 ** (-ages / HALF_LIFE), ids.shape[1]))
        for expert in np.flatnonzero(times).tolist():
            self._cache.use((layer, expert), self._tokens[layer], times[expert])

    @property
    def may_foresee(self) -> bool:
        """Whether a guess at a later layer's experts is welcome: guessing has paid so far."""
        return self._foresight.pays

    def foresee(self, layer: int, experts: Sequence[int], most: int) -> None:
        """Start reading some of the first `most` of `experts`, likeliest first, that `layer` will probably want.

        None of `experts` makes room for them. Such reads wait for all others, and those that have not begun when the
        layer turns out not to want them are given up. Does nothing where it would not pay.
        """
        if not self._foresight.pays:
            return
        with self._or_abandon():
            self._settle_ready()
            self._foresight.tried(self._guess_all([(layer, expert) for expert in experts], most))

    def fill(self) -> bool:
        """Read a few records that nobody asked for into free slots, and check them; False once there is no more to do.

        For when nothing is computed: it returns when they are there. Raises StorageError or MismatchError if one cannot
        be read or is damaged; that one is free again, and whoever wants it later hears of it.
        """
        with self._or_abandon():
            self._settle_ready()
            faults, started = list[Exception](), self._filling.start()
            while any(key in self._arrivals for key in started):
                arrived = self._arrivals.next()
                self._settle(arrived)
                if arrived.error is not None and arrived.key in started:
                    faults.append(arrived.error)
        if faults:
            raise faults[0]
        return bool(started)

    def close(self) -> None:
        """End the threads; no records can be had afterwards."""
        self._close()

    def _begin(self, layer: int, experts: Sequence[int]) -> _Visit:
        """Account for a visit, and make sure that what is in memory of it stays."""
        if self._visit is not None:  # it was never finished, or a second interrupt cut its recovery short
            self.abandon()
        self._visit = visit = _Visit(layer, experts)
        with self._or_abandon():  # damage of earlier layers may be heard of now
            self._settle_ready()
            self._cache.pin(visit.keys)
            self._foresight.visit()
            self._judge_guesses(layer, visit)
        return visit

    def _has(self, key: Key) -> bool:
        return key in self._cache.records or key in self._arrivals

    def _use(self, layer: int, keys: Sequence[Key]) -> None:
        """One token wants these records."""
        self._tokens[layer] += 1
        for key in keys:
            self._cache.use(key, self._tokens[layer])

    def _judge_guesses(self, layer: int, visit: _Visit) -> None:
        """The visited layer shows which guesses were right; those of other layers stay open."""
        for key in [key for key in self._guesses if key[0] == layer]:
            displaced, wanted = self._guesses.pop(key), key in visit.keys
            if wanted:
                visit.fetched.add(key)
                if key in self._arrivals:
                    self._arrivals.hurry(key)
            elif key in self._arrivals and (slot := self._arrivals.cancel(key)) is not None:
                self._give_back(slot, displaced)
                continue
            self._stats.foreseen += 1
            self._stats.foreseen_used += wanted
            self._foresight.judge(used=wanted)

    def _give_back(self, slot: Bytes, displaced: Key | None) -> None:
        """A slot that nothing was read into still holds the record that it held before."""
        if displaced is None or self._has(displaced):
            self._cache.free.append(slot)
        else:
            self._cache.put(displaced, slot)

    def _guess_all(self, keys: Sequence[Key], most: int) -> int:
        """Read as many of the first `most` records on a guess as may be; how many that were."""
        reads = 0
        for key in keys[:most]:
            if self._has(key):
                continue
            if len(self._guesses) == MOST_GUESSES or not self._guess(key, keys):
                break
            reads += 1
        return reads

    def _guess(self, key: Key, kept: Sequence[Key]) -> bool:
        """Read a record on a guess; False if no slot can be had for it."""
        displaced = None if self._cache.free else self._cache.coldest(kept, here=key[0])
        if displaced is None and not self._cache.free:
            return False
        slot = self._cache.free.pop() if displaced is None else self._cache.drop(displaced)
        self._guesses[key] = displaced
        self._arrivals.start([key], [slot], urgent=False)
        return True

    def _request(self, visit: _Visit, missing: deque[Key]) -> None:
        """Start reading what is missing, as far as there are slots."""
        while missing and (slot := self._room()) is not None:
            key = missing.popleft()
            visit.fetched.add(key)
            self._arrivals.start([key], [slot], urgent=True)

    def _room(self) -> Bytes | None:
        slot = self._cache.room()
        return self._reclaimed() if slot is None else slot

    def _reclaimed(self) -> Bytes | None:
        """The slot of a guess whose read has not begun."""
        for key in [key for key in self._guesses if key in self._arrivals]:
            if (slot := self._arrivals.cancel(key)) is not None:
                del self._guesses[key]
                return slot
        return None

    def _hand_out(self, visit: _Visit, key: Key) -> tuple[int, Bytes]:
        self._stats.hits += key not in visit.fetched
        if (slot := self._cache.records.get(key)) is None:
            slot = self._unchecked[key]
            self._trusted.add(key)
        return key[1], slot[: self._pack.records[key[0]].stride]

    def _leave(self, visit: _Visit, batch: list[Key]) -> None:
        """Where there are fewer slots than records, what was handed out makes room."""
        if len(visit.keys) > len(self._cache.slots):
            for key in batch:
                self._cache.unpin(key)

    def _next(self) -> Arrived:
        start = time.perf_counter()
        try:
            return self._arrivals.next()
        finally:
            self._stats.wait_seconds += time.perf_counter() - start

    def _settle_ready(self) -> None:
        for arrived in self._arrivals.ready():
            self._settle(arrived)

    def _settle(self, arrived: Arrived) -> None:
        """A record takes its place in the cache once checked; one that failed is an error if anybody wants it."""
        if arrived.error is None and arrived.key not in self._unchecked:
            self._stats.records_read += 1
            self._stats.bytes_read += self._pack.records[arrived.key[0]].stride
        if not arrived.checked:
            self._unchecked[arrived.key] = arrived.slot
            return
        self._unchecked.pop(arrived.key, None)
        if arrived.error is None:
            self._trusted.discard(arrived.key)
            self._cache.put(arrived.key, arrived.slot)
        elif arrived.key in self._trusted or (self._visit is not None and arrived.key in self._visit.keys):
            raise arrived.error
        else:
            self._guesses.pop(arrived.key, None)
            self._cache.free.append(arrived.slot)

    @contextmanager
    def _or_abandon(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abandon()
            raise


def _outgrows_memory(pack: Pack) -> bool:
    """Whether the page cache could not hold the pack: then it shall hold nothing, for the slots are the cache."""
    return pack.expert_bytes > host.memory_free()


def _close(arrivals: Arrivals, files: LayerFiles) -> None:
    arrivals.close()
    files.close()
