"""Reads under way, and the records that come of them: whole, then checked, in whatever order the disk delivers.

Threads of the native pool read, one of ours announces what they bring, others compare digests (without the GIL), and
one queue brings all news to the engine's thread, the only one that starts reads. Every record arrives as soon as it is
whole, and once more when its digest was compared; one that failed arrives as an error. Digests are compared while the
engine's thread waits for news, when nothing computes; see `checking` for the exception.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import ParamSpec, Protocol, TypeAlias

from ...layout.reader import Pack
from ...manifests.digest import RecordHasher
from ...manifests.errors import MismatchError, StorageError
from .cache import Key
from .files import LayerFiles
from .slots import Bytes

CHECK_THREADS = min(8, os.cpu_count() or 1)  # one core compares 4 to 6 GB/s
CHECKED_AT_ONCE = 512 * 1024  # bytes: as fast as whole records, and soon out of the way when there is news

P = ParamSpec("P")
News: TypeAlias = tuple[int, bool, Exception | None]  # of a ticket: whether that is the last, and what is wrong


class Reader(Protocol):
    """Reads ranges into arrays; see _native.ReadPool, which documents each."""

    def submit(
        self, ticket: int, fd: int, offset: int, to: list[Bytes], *, pieces: int, urgent: bool, forget: bool
    ) -> None:
        """Start filling `to`."""

    def hurry(self, ticket: int) -> None:
        """Make a read urgent."""

    def cancel(self, ticket: int) -> bool:
        """Give up a read that has not begun."""

    def next(self) -> tuple[int, int, int] | None:
        """Wait for (ticket, bytes read, errno or 0); None after `close`."""

    def abandon(self) -> None:
        """Give up every read, and wait for those under way."""

    def close(self) -> None:
        """End."""

    def busy_seconds(self) -> float:
        """How long at least one read has been under way."""


@dataclass(frozen=True)
class Manner:
    """How ranges are read: in how many pieces one record is, and whether its pages are dropped afterwards."""

    pieces: int
    forget: bool


@dataclass(frozen=True, slots=True)
class Arrived:
    """A whole record in its slot, `checked` or yet to be, or why it is not there: `error`."""

    key: Key
    slot: Bytes
    checked: bool
    error: Exception | None


class _Leave:
    """To compare digests, for the checking threads: while the engine's thread waits, or sweeps.

    Two facts and a queue rather than an Event, whose lock an interrupt can leave held for ever.
    """

    def __init__(self) -> None:
        self.waiting = self.sweeping = False
        self._given: SimpleQueue[None] = SimpleQueue()

    def give(self, *, waiting: bool = False, sweeping: bool = False) -> None:
        """Let all threads go on."""
        self.waiting |= waiting
        self.sweeping |= sweeping
        for _ in range(CHECK_THREADS - self._given.qsize()):
            self._given.put(None)

    def await_it(self) -> None:
        """Return once there is leave."""
        while not (self.waiting or self.sweeping):
            self._given.get()


class Arrivals:
    """Starts reads of a pack's records and hands out what has arrived. Used by one thread."""

    def __init__(self, pack: Pack, files: LayerFiles, reader: Reader, manner: Manner, *, check_digests: bool) -> None:
        self._pack = pack
        self._files = files
        self._reader = reader
        self._manner = manner
        self._check = check_digests
        self._ticket = 0
        self._tickets: dict[Key, int] = {}
        self._expected: dict[int, tuple[Key, Bytes]] = {}
        self._news: SimpleQueue[News] = SimpleQueue()
        self._to_check: SimpleQueue[int | None] = SimpleQueue()  # tickets; None is the end
        self._leave = _Leave()
        works = [self._announce_all, *([self._check_all] * CHECK_THREADS if check_digests else [])]
        self._threads = [Thread(target=work, name="moepack-arrivals", daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def __contains__(self, key: Key) -> bool:
        """Whether a record is being read or checked."""
        return key in self._tickets

    def __len__(self) -> int:
        return len(self._tickets)

    def start(self, keys: Sequence[Key], slots: Sequence[Bytes], *, urgent: bool) -> None:
        """Start one read of records that are neighbours in their layer's file, ascending, into a slot each."""
        address = self._pack.address(*keys[0])
        first, size = self._ticket + 1, address.size
        self._ticket += len(keys)
        for ticket, key, slot in zip(range(first, first + len(keys)), keys, slots, strict=True):
            self._expected[ticket] = (key, slot)
            self._tickets[key] = ticket
        self._reader.submit(
            first,
            self._files.descriptor(keys[0][0]),
            address.offset,
            [slot[:size] for slot in slots],
            pieces=self._manner.pieces if len(keys) == 1 else 1,
            urgent=urgent,
            forget=self._manner.forget,
        )

    def next(self) -> Arrived:
        """Wait for any record, whole or checked."""
        try:
            self._leave.give(waiting=True)
            while (arrived := self._take()) is None:
                pass
        finally:
            self._leave.waiting = False
        return arrived

    def ready(self) -> Iterator[Arrived]:
        """What has arrived, without waiting."""
        while not self._news.empty():
            if (arrived := self._take()) is not None:
                yield arrived

    def _take(self) -> Arrived | None:
        """What comes next; None for a record that had been abandoned."""
        ticket, last, error = self._news.get()
        if ticket not in self._expected:
            return None
        key, slot = self._expected[ticket]
        if last:
            del self._expected[ticket], self._tickets[key]
        return Arrived(key, slot, last, error)

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Digests are compared meanwhile, whether or not the engine's thread waits."""
        try:
            self._leave.give(sweeping=True)
            yield
        finally:
            self._leave.sweeping = False

    def hurry(self, key: Key) -> None:
        """A record that was read ahead is wanted now."""
        self._reader.hurry(self._tickets[key])

    def cancel(self, key: Key) -> Bytes | None:
        """Give up a record whose read has not begun: its slot, untouched. None if it has."""
        if not self._reader.cancel(self._tickets[key]):
            return None
        return self._expected.pop(self._tickets.pop(key))[1]

    def abandon(self) -> None:
        """Give up all records; once this returns nobody writes to their slots. May be repeated after an interrupt."""
        self._leave.waiting = self._leave.sweeping = False
        self._reader.abandon()
        self._expected.clear()
        self._tickets.clear()

    def close(self) -> None:
        """End the reading and the checking; nothing can be read afterwards."""
        self._reader.close()
        self._leave.give(sweeping=True)
        for thread in self._threads:
            thread.join()

    def _announce_all(self) -> None:
        """Tell of what arrives until the reader is closed; runs in a thread of its own."""
        while (arrival := self._reader.next()) is not None:
            ticket, got, error = arrival
            if (expected := self._expected.get(ticket)) is not None:
                fault = _answer(self._short, expected[0], got, error)
                last = fault is not None or not self._check
                self._news.put((ticket, last, fault))
                if not last:
                    self._to_check.put(ticket)
        self._to_check.put(None)

    def _check_all(self) -> None:
        """Compare digests, the oldest first, until the end; runs in each of the checking threads."""
        while (ticket := self._to_check.get()) is not None:
            if (expected := self._expected.get(ticket)) is not None:
                self._news.put((ticket, True, _answer(self._damage, *expected)))
        self._to_check.put(None)  # for the other threads

    def _short(self, key: Key, got: int, error: int) -> StorageError | None:
        """Why only `got` bytes of a record arrived, or None."""
        if error:
            return StorageError(f"{self._place(key)} cannot be read: {os.strerror(error)}; check the disk")
        if got < self._pack.records[key[0]].stride:
            return StorageError(
                f"{self._place(key)} ends after {got} bytes; the file was truncated after the pack was opened"
            )
        return None

    def _damage(self, key: Key, slot: Bytes) -> MismatchError | None:
        """How a whole record differs from what the pack states, or None."""
        if self._digest(key, slot[: self._pack.records[key[0]].stride]) == self._pack.record_digest(*key):
            return None
        return MismatchError(
            f"{self._place(key)} is damaged: its bytes differ from the pack's digest;"
            f" `moe-pack verify {self._pack.path}` names every damaged part"
        )

    def _digest(self, key: Key, record: Bytes) -> bytes:
        """The digest of a record in its place, computed when there is leave to."""
        hasher = RecordHasher()
        for first in range(0, len(record), CHECKED_AT_ONCE):
            self._leave.await_it()
            hasher.update(record[first : first + CHECKED_AT_ONCE].data)
        return hasher.digest(*key)

    def _place(self, key: Key) -> str:
        layer, expert = key
        address = self._pack.address(layer, expert)
        file = self._pack.path / self._pack.manifest.layers[layer].file
        return f"{file}: layer {layer}, expert {expert} (bytes {address.offset}+{address.size})"


def _answer(judge: Callable[P, Exception | None], *args: P.args, **kwargs: P.kwargs) -> Exception | None:
    """What a judge says; a defect of ours is an answer too, for someone waits for it."""
    try:
        return judge(*args, **kwargs)
    except Exception as defect:
        return defect
