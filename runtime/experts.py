"""Expert streaming: records read in parallel into a fixed set of slots, checked, and handed out in order.

A slot whose record is in use or still arriving is never reused. Which records happen to be in memory changes speed
only: every record is the bytes whose digest the pack states, or there is an error and no token.
"""

import mmap
import os
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from ..layout.reader import Pack
from ..manifests.errors import MismatchError, StorageError
from . import _native

Bytes: TypeAlias = NDArray[np.uint8]
Key: TypeAlias = tuple[int, int]  # (layer, expert)

HUGE_PAGE = 2 * 1024 * 1024  # aligned destinations make reads faster: fewer translations, larger transfers
READ_THREADS = 8
CHECK_THREADS = 2  # they wait for reads and hash what arrived, both without the GIL


class Reader(Protocol):
    """Starts reads and waits for them; see _native.ReadPool."""

    def submit(self, fd: int, offset: int, to: Bytes) -> int:
        """Start filling `to`; returns a ticket."""

    def wait(self, ticket: int) -> tuple[int, int]:
        """(bytes read, errno or 0) of a ticket."""

    def drain(self) -> None:
        """Wait until no read is under way."""


@dataclass
class StreamStats:
    """What streaming has cost so far. `hits` are records that were still in a slot when their turn came."""

    records_read: int = 0
    bytes_read: int = 0
    hits: int = 0
    wait_seconds: float = 0.0


class _Share:
    """Some slots and the records in them, least recently used first; those in `arriving` are not whole yet.

    `disturbed` while a visit is under way, and after one that was cut short until `recover`.
    """

    def __init__(self, slots: Sequence[Bytes]) -> None:
        self.slots = tuple(slots)
        self.free = list(slots)
        self.resident: OrderedDict[Key, Bytes] = OrderedDict()
        self.arriving: dict[Key, Future[None]] = {}
        self.window = min(READ_THREADS, len(slots))
        self.disturbed = False

    def recover(self) -> None:
        """Take back every slot without a whole record, wherever an interrupt struck; no read may be under way."""
        for key in self.arriving:
            self.resident.pop(key, None)
        self.arriving.clear()
        held = {id(slot) for slot in self.resident.values()}
        self.free = [slot for slot in self.slots if id(slot) not in held]
        self.disturbed = False


class _Visit:
    """One pass over the records in `queue`: those before `ahead` are in slots or arriving."""

    def __init__(self, share: _Share, queue: Sequence[Key]) -> None:
        self.queue = queue
        self.ahead = 0
        self._share = share
        wanted = set(queue)
        self._spare = deque(key for key in share.resident if key not in wanted)
        self._later = [index for index, key in enumerate(queue) if key in share.resident]

    def room(self) -> Bytes | None:
        """A slot for the record at `ahead`, or None if it must wait.

        Free slots first, then the least recently used record that this visit needs no more. While fewer reads than the
        window are ahead, also the record that is needed last: the disk would idle otherwise. The first record in turn
        always gets one, for then every slot holds a later one.
        """
        share = self._share
        if share.free:
            return share.free.pop()
        if self._spare:
            return share.resident.pop(self._spare.popleft())
        if len(share.arriving) < share.window and self._later and self._later[-1] > self.ahead:
            return share.resident.pop(self.queue[self._later.pop()])
        return None

    def leave(self, key: Key) -> None:
        """The record has been used and may make room."""
        self._spare.append(key)


class ExpertStream:
    """Hands out expert records of `pack`, keeping at most `slots` of them in memory.

    With at least `experts_per_token` slots per layer each layer has its own: experts are visited layer by layer, and
    one shared least-recently-used list would always drop exactly what comes next. With fewer, all layers share them.
    Reading and checking go on while the caller computes; `close` ends their threads.
    """

    def __init__(
        self,
        pack: Pack,
        slots: int,
        *,
        experts_per_token: int,
        check_digests: bool = True,
        reader: Reader | None = None,
    ) -> None:
        self.stats = StreamStats()
        self.slot_bytes = slot_pitch(pack)
        self._pack = pack
        self._check = check_digests
        self._reader: Reader = reader or _native.ReadPool(READ_THREADS)
        self._checkers = ThreadPoolExecutor(CHECK_THREADS, "moepack-check")
        self._shares = _shares(_slots(slots, self.slot_bytes), pack.model.num_layers, experts_per_token)

    def records(self, layer: int, experts: Sequence[int]) -> Iterator[tuple[int, Bytes]]:
        """Yield (expert, record) in the order of `experts`, which are distinct; a record is valid until the next one.

        While one is computed with, as many of the following as there are slots for are being read. Raises StorageError
        if the device fails or the file ends early, MismatchError if the bytes are not the pack's.
        """
        share = self._shares[layer % len(self._shares)]
        if share.disturbed:  # a second interrupt cut the last recovery short
            self._recover(share)
        visit = _Visit(share, [(layer, expert) for expert in experts])
        share.disturbed = True
        try:
            for key in visit.queue:
                self._request(share, visit)
                yield key[1], self._arrived(share, key)
                visit.leave(key)
            share.disturbed = False
        finally:
            if share.disturbed:
                self._recover(share)

    def close(self) -> None:
        """End the threads that check; no records can be had afterwards."""
        self._checkers.shutdown()

    def _request(self, share: _Share, visit: _Visit) -> None:
        """Start reading what is missing of the visit, in order, as long as there is room."""
        while visit.ahead < len(visit.queue):
            key = visit.queue[visit.ahead]
            if key not in share.resident:
                slot = visit.room()
                if slot is None:
                    return
                share.arriving[key] = self._start(key, slot)
                share.resident[key] = slot
            visit.ahead += 1

    def _start(self, key: Key, slot: Bytes) -> "Future[None]":
        address = self._pack.address(*key)
        record = slot[: address.size]
        ticket = self._reader.submit(address.fd, address.offset, record)
        return self._checkers.submit(self._finish, key, ticket, record)

    def _finish(self, key: Key, ticket: int, record: Bytes) -> None:
        """Wait for a read and check what it brought."""
        got, error = self._reader.wait(ticket)
        if error or got < len(record):
            raise StorageError(self._failure(key, got, error))
        if self._check and blake3(record.data).digest() != self._pack.record_digest(*key):
            raise MismatchError(
                f"{self._place(key)} is damaged: its bytes differ from the pack's digest;"
                f" `moe-pack verify {self._pack.path}` names every damaged part"
            )

    def _arrived(self, share: _Share, key: Key) -> Bytes:
        """The record whose turn it is, once it is there and right."""
        record = share.resident[key][: self._pack.records[key[0]].stride]
        if key in share.arriving:
            self._wait(share.arriving[key])
            del share.arriving[key]
            self.stats.records_read += 1
            self.stats.bytes_read += len(record)
        else:
            self.stats.hits += 1
        share.resident.move_to_end(key)
        return record

    def _wait(self, arrival: "Future[None]") -> None:
        start = time.perf_counter()
        try:
            arrival.result()
        finally:
            self.stats.wait_seconds += time.perf_counter() - start

    def _recover(self, share: _Share) -> None:
        """After an early end: wait for what nobody will use, then for reads that an interrupt left unregistered."""
        wait(share.arriving.values())
        self._reader.drain()
        share.recover()

    def _failure(self, key: Key, got: int, error: int) -> str:
        if error:
            return f"{self._place(key)} cannot be read: {os.strerror(error)}; check the disk"
        return f"{self._place(key)} ends after {got} bytes; the file was truncated after the pack was opened"

    def _place(self, key: Key) -> str:
        layer, expert = key
        address = self._pack.address(layer, expert)
        file = self._pack.path / self._pack.manifest.layers[layer].file
        return f"{file}: layer {layer}, expert {expert} (bytes {address.offset}+{address.size})"


def slot_pitch(pack: Pack) -> int:
    """Bytes from one slot to the next: the largest stride, in whole huge pages if that wastes less than an eighth."""
    stride = max(record.stride for record in pack.records)
    aligned = -(-stride // HUGE_PAGE) * HUGE_PAGE
    return aligned if aligned - stride < aligned // 8 else stride


def _slots(count: int, pitch: int) -> list[Bytes]:
    """Slots side by side in anonymous memory that starts on a huge page."""
    memory = mmap.mmap(-1, count * pitch + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    arena = np.frombuffer(memory, np.uint8)
    start = -arena.ctypes.data % HUGE_PAGE
    return [arena[start + i * pitch : start + (i + 1) * pitch] for i in range(count)]


def _shares(slots: list[Bytes], layers: int, experts_per_token: int) -> list[_Share]:
    if len(slots) // layers < experts_per_token:
        return [_Share(slots)]
    return [_Share(slots[layer::layers]) for layer in range(layers)]
