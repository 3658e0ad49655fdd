"""Expert streaming: records read in parallel into a fixed set of slots, checked, and handed out in order.

A slot whose record is in use or still arriving is never reused. Which records happen to be in memory changes speed
only: every record is the bytes whose digest the pack states, or there is an error and no token.
"""

import mmap
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
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
THREADED_HASH_BYTES = 1024 * 1024  # below this, handing a hash to more threads costs more than it saves
READ_THREADS = 8


class Reader(Protocol):
    """Starts reads and waits for them; see _native.ReadPool."""

    def submit(self, fd: int, offset: int, to: Bytes) -> int:
        """Start filling `to`; returns a ticket."""

    def wait(self, ticket: int) -> tuple[int, int]:
        """(bytes read, errno or 0) of a ticket."""


@dataclass
class StreamStats:
    """What streaming has cost so far. `hits` are records that were already in a slot when they were wanted."""

    records_read: int = 0
    bytes_read: int = 0
    hits: int = 0
    wait_seconds: float = 0.0


@dataclass(eq=False)
class _Slot:
    buffer: Bytes
    ticket: int | None = None  # a read under way


class _Share:
    """Some slots and the records in them, least recently used first."""

    def __init__(self, slots: Sequence[_Slot]) -> None:
        self.free = list(slots)
        self.resident: OrderedDict[Key, _Slot] = OrderedDict()

    def take(self, kept: set[Key]) -> _Slot | None:
        """A slot for a new record: a free one, or the least recently used whose record is not in `kept`."""
        if self.free:
            return self.free.pop()
        victim = next((key for key in self.resident if key not in kept), None)
        return None if victim is None else self.resident.pop(victim)


class ExpertStream:
    """Hands out expert records of `pack`, keeping at most `slots` of them in memory.

    With at least `experts_per_token` slots per layer each layer has its own: experts are visited layer by layer, and
    one shared least-recently-used list would always drop exactly what comes next. With fewer, all layers share them.
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
        self._shares = _shares(_slots(slots, self.slot_bytes), pack.model.num_layers, experts_per_token)

    def records(self, layer: int, experts: Sequence[int]) -> Iterator[tuple[int, Bytes]]:
        """Yield (expert, record) in the order of `experts`, which are distinct; a record is valid until the next one.

        While one is computed with, as many of the following as there are slots for are being read. Raises StorageError
        if the device fails or the file ends early, MismatchError if the bytes are not the pack's.
        """
        share = self._shares[layer % len(self._shares)]
        queue = [(layer, expert) for expert in experts]
        self.stats.hits += sum(key in share.resident for key in queue)
        try:
            for index, key in enumerate(queue):
                self._request(share, queue[index:])
                yield key[1], self._arrived(share, key)
        finally:
            self._settle(share)

    def _request(self, share: _Share, queue: Sequence[Key]) -> None:
        """Start reading what is missing of `queue`, in order, as long as there are slots; its first entry always."""
        kept = set(queue)
        for key in queue:
            if key in share.resident:
                continue
            slot = share.take(kept)
            if slot is None and key == queue[0]:  # every slot holds something of this queue: drop the last needed
                slot = share.resident.pop(next(last for last in reversed(queue) if last in share.resident))
            if slot is None:
                return
            address = self._pack.address(*key)
            slot.ticket = self._reader.submit(address.fd, address.offset, slot.buffer[: address.size])
            share.resident[key] = slot

    def _arrived(self, share: _Share, key: Key) -> Bytes:
        slot = share.resident[key]
        record = slot.buffer[: self._pack.records[key[0]].stride]
        if slot.ticket is not None:
            try:
                self._finish(slot, key, record)
            except BaseException:
                del share.resident[key]
                share.free.append(slot)
                raise
        share.resident.move_to_end(key)
        return record

    def _finish(self, slot: _Slot, key: Key, record: Bytes) -> None:
        """Wait for a read and check what it brought."""
        start = time.perf_counter()
        got, error = self._wait(slot)
        self.stats.wait_seconds += time.perf_counter() - start
        if error or got < len(record):
            raise StorageError(self._failure(key, got, error))
        self.stats.records_read += 1
        self.stats.bytes_read += got
        if self._check and _digest(record) != self._pack.record_digest(*key):
            raise MismatchError(
                f"{self._place(key)} is damaged: its bytes differ from the pack's digest;"
                f" `moe-pack verify {self._pack.path}` names every damaged part"
            )

    def _wait(self, slot: _Slot) -> tuple[int, int]:
        assert slot.ticket is not None
        ticket, slot.ticket = slot.ticket, None
        return self._reader.wait(ticket)

    def _settle(self, share: _Share) -> None:
        """After an early end: wait for reads nobody will use and forget what they brought."""
        for key in [key for key, slot in share.resident.items() if slot.ticket is not None]:
            slot = share.resident.pop(key)
            self._wait(slot)
            share.free.append(slot)

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


def _digest(record: Bytes) -> bytes:
    threads = blake3.AUTO if len(record) >= THREADED_HASH_BYTES else 1
    return blake3(record.data, max_threads=threads).digest()


def _slots(count: int, pitch: int) -> list[_Slot]:
    """Slots side by side in anonymous memory that starts on a huge page."""
    memory = mmap.mmap(-1, count * pitch + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    arena = np.frombuffer(memory, np.uint8)
    start = -arena.ctypes.data % HUGE_PAGE
    return [_Slot(arena[start + i * pitch : start + (i + 1) * pitch]) for i in range(count)]


def _shares(slots: list[_Slot], layers: int, experts_per_token: int) -> list[_Share]:
    if len(slots) // layers < experts_per_token:
        return [_Share(slots)]
    return [_Share(slots[layer::layers]) for layer in range(layers)]
