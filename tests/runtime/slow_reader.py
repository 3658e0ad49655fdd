"""Streams whose reads come when a test wants them to, and what must hold of every stream."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from tinypack import build, tiny_model, tiny_plan

from moepack.layout.reader import Pack
from moepack.manifests.errors import StorageError
from moepack.runtime.disk import DEFAULT
from moepack.runtime.experts import ExpertStream
from moepack.runtime.streaming.arrivals import Arrived

EXPERTS = 9


def two_layers(folder: Path) -> Path:
    """A pack of EXPERTS in each of two layers."""
    build(folder / "pack", tiny_plan(folder, tiny_model(layers=2, experts=EXPERTS)))
    return folder / "pack"


def until(condition: Callable[[], bool]) -> None:
    """Waits, but not for ever."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@dataclass
class Asked:
    """A range that was asked for."""

    ticket: int
    fd: int
    offset: int
    to: list[np.ndarray]
    urgent: bool

    def spoil(self, *, begun: bool) -> None:
        """A read that waits its turn behind others leaves its places alone."""
        for place in self.to if begun else ():
            place[:] = 0xEE

    def read(self) -> list[tuple[int, int, int]]:
        """Read it, as the native pool would."""
        os.preadv(self.fd, [place.data for place in self.to], self.offset)
        return [(self.ticket + index, len(place), 0) for index, place in enumerate(self.to)]


class SlowReader:
    """Does a read only when the stream waits for one, and spoils its slots until then: early reuse would show.

    Which of the reads comes next is up to `pick`; patient ones come when nothing else is left.
    """

    def __init__(self, pick: Callable[[int], int] = lambda reads: 0) -> None:
        self.pick = pick
        self.queued: list[Asked] = []
        self.asked: list[Asked] = []
        self.cancelled: list[int] = []
        self.hurried: list[int] = []
        self.most = 0  # records asked for at once
        self.unannounced = 0  # records that were read, but the stream has not yet heard of
        self._arrived: SimpleQueue[tuple[int, int, int] | None] = SimpleQueue()

    def stream(self, pack: Pack, slots: int, depth: int = 8) -> ExpertStream:
        """A stream that reads with this."""
        stream = ExpertStream(pack, slots, tuning=replace(DEFAULT, depth=depth), reader=self)
        take = stream._arrivals._take

        def deliver_and_take() -> Arrived | None:
            if stream._arrivals._news.empty() and self.queued and not self.unannounced:
                self.deliver()
            arrived = take()
            if arrived is not None and (not arrived.checked or isinstance(arrived.error, StorageError)):
                self.unannounced -= 1
            return arrived

        stream._arrivals._take = deliver_and_take  # type: ignore[method-assign]
        return stream

    def deliver(self) -> None:
        urgent = [read for read in self.queued if read.urgent] or self.queued
        read = urgent[self.pick(len(urgent))]
        self.queued.remove(read)
        for arrival in self.read(read):
            self.unannounced += 1
            self._arrived.put(arrival)

    def read(self, asked: Asked) -> list[tuple[int, int, int]]:
        return asked.read()

    def submit(
        self, ticket: int, fd: int, offset: int, to: list[np.ndarray], *, pieces: int, urgent: bool, forget: bool
    ) -> None:
        self.queued.append(Asked(ticket, fd, offset, to, urgent))
        self.queued[-1].spoil(begun=urgent)
        self.asked.append(self.queued[-1])
        self.most = max(self.most, sum(len(read.to) for read in self.queued))

    def hurry(self, ticket: int) -> None:
        self.hurried.append(ticket)
        for read in self.queued:
            if read.ticket == ticket:
                read.urgent = True
                read.spoil(begun=True)

    def cancel(self, ticket: int) -> bool:
        self.cancelled += [read.ticket for read in self.queued if read.ticket == ticket]
        before = len(self.queued)
        self.queued = [read for read in self.queued if read.ticket != ticket]
        return len(self.queued) < before

    def next(self) -> tuple[int, int, int] | None:
        if (arrival := self._arrived.get()) is None:
            self._arrived.put(None)
        return arrival

    def abandon(self) -> None:
        self.queued.clear()
        self.unannounced = 0

    def close(self) -> None:
        self._arrived.put(None)

    def busy_seconds(self) -> float:
        return 0.0


def check_records(pack: Pack, stream: ExpertStream, layer: int, experts: list[int], *, early: bool, lag: int) -> int:
    handed: list[tuple[int, np.ndarray]] = []
    for expert, record in stream.records(layer, experts, lag):
        handed.append((expert, record))
        for valid, seen in handed[-lag - 1 :]:
            assert np.array_equal(seen, pack.read_record(layer, valid))
        if early:
            return 1
    assert [expert for expert, _ in handed] == experts
    for valid, seen in handed[-lag:] if lag else []:
        assert np.array_equal(seen, pack.read_record(layer, valid))
    return len(handed)


def check_batches(pack: Pack, stream: ExpertStream, layer: int, experts: list[int], *, early: bool, slots: int) -> int:
    handed: dict[int, np.ndarray] = {}
    for order, batch in enumerate(stream.batches(layer, experts)):
        assert batch or order == 0  # the first is what was in memory
        assert not handed.keys() & dict(batch)
        handed |= dict(batch)
        valid = handed if slots >= len(experts) else dict(batch)
        assert all(np.array_equal(record, pack.read_record(layer, expert)) for expert, record in valid.items())
        if early and handed:
            return len(handed)
    assert handed.keys() == set(experts)
    return len(handed)


def decode(stream: ExpertStream, layer: int, experts: Sequence[int]) -> None:
    """A visit of which all is checked when it is over."""
    list(stream.batches(layer, experts))
    stream.confirm()


def check_slots(stream: ExpertStream) -> None:
    """Each slot is free, or holds a record, or is being read into; none is lost, none is two things."""
    cache, arriving = stream._cache, [slot for _, slot in stream._arrivals._expected.values()]
    assert sorted(map(id, [*cache.free, *cache.records.values(), *arriving])) == sorted(map(id, cache.slots))


class FaultyReader(SlowReader):
    """Answers every read as told."""

    def __init__(self, got: int, error: int) -> None:
        super().__init__()
        self.answer = (got, error)

    def read(self, asked: Asked) -> list[tuple[int, int, int]]:
        return [(asked.ticket + index, *self.answer) for index in range(len(asked.to))]


def writable(file: Path) -> Path:
    """A pack's file, which may now be written to by others than root too."""
    file.chmod(0o644)
    return file


def flip_bit(pack: Pack, layer: int, expert: int) -> None:
    """Damage a record on disk."""
    offset = pack.address(layer, expert).offset + 77
    with writable(pack.path / pack.manifest.layers[layer].file).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))
