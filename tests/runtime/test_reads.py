"""The native read pool: ranges arrive whole, in pieces or together; urgent ones first; faults are told as they are."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moepack.runtime import _native

SIZE = 1 << 20


@pytest.fixture
def content(tmp_path: Path) -> np.ndarray:
    content = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    content.tofile(tmp_path / "file")
    return content


@pytest.fixture
def descriptor(content: np.ndarray, tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "file", os.O_RDONLY)
    yield opened
    os.close(opened)


def arrivals(pool: _native.ReadPool, count: int) -> dict[int, tuple[int, int]]:
    got = [pool.next() for _ in range(count)]
    return {arrival[0]: arrival[1:] for arrival in got if arrival is not None}


def places(*sizes: int) -> list[np.ndarray]:
    return [np.zeros(size, np.uint8) for size in sizes]


def test_many_reads_at_once(content: np.ndarray, descriptor: int) -> None:
    pool, buffers = _native.ReadPool(8), places(*[4096] * 256)
    for index, buffer in enumerate(buffers):
        pool.submit(index, descriptor, 4096 * index, [buffer])
    assert arrivals(pool, 256) == dict.fromkeys(range(256), (4096, 0))
    assert np.array_equal(np.concatenate(buffers), content)
    assert pool.busy_seconds() > 0


@pytest.mark.parametrize("pieces", [1, 2, 3, 7])
@pytest.mark.parametrize("sizes", [(SIZE,), (100_000, 1, 65_536, 300_001), (16,) * 200])
def test_a_range_fills_places_of_any_size_in_any_number_of_pieces(
    content: np.ndarray, descriptor: int, sizes: tuple[int, ...], pieces: int
) -> None:
    pool, to = _native.ReadPool(3), places(*sizes)
    pool.submit(10, descriptor, 0, to, pieces=pieces)
    assert arrivals(pool, len(sizes)) == {10 + index: (size, 0) for index, size in enumerate(sizes)}
    assert np.array_equal(np.concatenate(to), content[: sum(sizes)])


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_a_file_that_ends_early_gives_each_place_what_was_there(
    content: np.ndarray, descriptor: int, pieces: int
) -> None:
    pool, to = _native.ReadPool(4), places(40_000, 40_000, 40_000)
    pool.submit(1, descriptor, SIZE - 50_000, to, pieces=pieces)
    assert arrivals(pool, 3) == {1: (40_000, 0), 2: (10_000, 0), 3: (0, 0)}
    assert np.array_equal(to[1][:10_000], content[-10_000:])


def test_errors_are_told(tmp_path: Path, descriptor: int) -> None:
    pool, to = _native.ReadPool(2), places(64, 64, 64, 64)
    folder = os.open(tmp_path, os.O_RDONLY)
    pool.submit(1, folder, 0, to[:1])
    pool.submit(2, -1, 0, to[1:3], pieces=2)
    pool.submit(4, descriptor, 2 * SIZE, to[3:])
    assert arrivals(pool, 4) == {1: (0, errno.EISDIR), 2: (0, errno.EBADF), 3: (0, errno.EBADF), 4: (0, 0)}
    os.close(folder)


def test_what_is_not_a_place_is_refused(descriptor: int) -> None:
    pool = _native.ReadPool(1)
    for to in ([], [np.zeros(4, np.float32)], [np.zeros((2, 2), np.uint8)], [np.zeros(8, np.uint8)[::2]]):
        with pytest.raises(ValueError, match="place"):
            pool.submit(1, descriptor, 0, to)
    assert pool.busy_seconds() == 0


def test_a_closed_pool_hands_out_nothing(descriptor: int) -> None:
    pool = _native.ReadPool(2)
    to = places(64)
    pool.submit(1, descriptor, 0, to)
    pool.close()
    assert pool.next() is None


def test_abandoned_reads_are_not_handed_out(descriptor: int) -> None:
    pool, to = _native.ReadPool(1), places(*[SIZE] * 50)
    for ticket, place in enumerate(to):
        pool.submit(ticket, descriptor, 0, [place])
    pool.abandon()
    pool.submit(99, descriptor, 0, to[:1])
    assert pool.next() == (99, SIZE, 0)


class Slow:
    """A pool of one thread that has begun a read; what else is asked for is mostly still queued."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.pool = _native.ReadPool(1)
        self.places = places(*[SIZE] * 64, *[4096] * 8)
        self.pool.submit(0, descriptor, 0, self.places[:1])

    def submit(self, ticket: int, *, urgent: bool) -> None:
        self.pool.submit(ticket, self.descriptor, 0, [self.places[ticket]], urgent=urgent)


def test_urgent_reads_go_first(descriptor: int) -> None:
    """One thread, kept busy by many urgent reads: a patient one asked for in between comes last, unless hurried."""
    slow = Slow(descriptor)
    slow.submit(1, urgent=False)
    slow.submit(2, urgent=False)
    for ticket in range(3, 40):
        slow.submit(ticket, urgent=True)
    slow.pool.hurry(2)
    order = list(arrivals(slow.pool, 40))
    if order.index(1) > 2:  # else it had begun before any urgent one was asked for
        assert order[-2:] == [2, 1]


def test_only_a_read_that_has_not_begun_can_be_cancelled(descriptor: int) -> None:
    slow = Slow(descriptor)
    for ticket in range(1, 40):
        slow.submit(ticket, urgent=False)
    assert slow.pool.cancel(39)
    assert not slow.pool.cancel(39)
    seen = arrivals(slow.pool, 39)
    assert 39 not in seen
    assert not slow.pool.cancel(0)  # it is over
