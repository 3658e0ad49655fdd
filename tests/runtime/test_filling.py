"""Records read while nothing is computed: into free slots only, checked, and an error only for who needs them."""

import errno
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from slow_reader import (
    EXPERTS,
    Asked,
    FaultyReader,
    SlowReader,
    check_batches,
    check_slots,
    decode,
    flip_bit,
    two_layers,
)

from moepack.layout.reader import Pack
from moepack.manifests.errors import MismatchError, StorageError
from moepack.runtime.experts import ExpertStream
from moepack.runtime.streaming import filling

ALL = {(layer, expert) for layer in range(2) for expert in range(EXPERTS)}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    with Pack.open(two_layers(tmp_path_factory.mktemp("streamed"))) as opened:
        yield opened


@pytest.fixture
def by_threes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three records at once."""
    monkeypatch.setattr(filling, "MOST_FILLED", 3)


@pytest.mark.usefixtures("by_threes")
def test_free_slots_are_filled_a_few_at_a_time_from_all_layers_in_turn(pack: Pack) -> None:
    reader = SlowReader()
    stream = reader.stream(pack, 7)
    for expected in (3, 6, 7):
        assert stream.fill()
        assert len(stream._cache.records) == expected
        check_slots(stream)
    assert list(stream._cache.records) == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (0, 3)]
    assert not any(read.urgent for read in reader.asked)
    assert not stream.fill()
    assert len(reader.asked) == 7
    stream.close()


def test_large_records_are_read_one_at_a_time(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "FILLED_BYTES", pack.records[0].stride - 1)
    stream = SlowReader().stream(pack, 7)
    assert stream.fill()
    assert len(stream._cache.records) == 1
    stream.close()


def test_all_that_there_is_may_be_less_than_the_slots(pack: Pack) -> None:
    stream = ExpertStream(pack, 2 * EXPERTS + 5)
    while stream.fill():
        pass
    assert stream._cache.records.keys() == ALL
    assert all(np.array_equal(slot[: pack.records[0].stride], pack.read_record(*key)) for key, slot in _held(stream))
    stream.close()


def _held(stream: ExpertStream) -> list[tuple[tuple[int, int], np.ndarray]]:
    return list(stream._cache.records.items())


@pytest.mark.usefixtures("by_threes")
def test_nothing_makes_room_and_what_is_there_is_not_read_again(pack: Pack) -> None:
    reader = SlowReader()
    stream = reader.stream(pack, 5)
    decode(stream, 1, [0, 8])
    before = dict(stream._cache.records)
    while stream.fill():
        pass
    assert before.items() <= stream._cache.records.items()
    assert stream._cache.records.keys() == {(1, 0), (1, 8), (0, 0), (0, 1), (1, 1)}
    assert stream.stats.records_read == len(reader.asked) == 5
    stream.close()


def test_what_was_filled_is_the_first_to_go(pack: Pack) -> None:
    stream = SlowReader().stream(pack, 4)
    decode(stream, 0, [7, 8])
    stream.fill()
    decode(stream, 1, [5, 6])
    assert stream._cache.records.keys() == {(0, 7), (0, 8), (1, 5), (1, 6)}
    stream.close()


def test_what_was_filled_is_a_hit_and_neither_a_guess_nor_a_wait(pack: Pack) -> None:
    stream = SlowReader().stream(pack, 2 * EXPERTS)
    stream.fill()
    assert (stream.stats.hits, stream.stats.wait_seconds, stream.stats.foreseen) == (0, 0, 0)
    assert check_batches(pack, stream, 1, [2, 7], early=False, slots=2 * EXPERTS) == 2
    assert (stream.stats.records_read, stream.stats.hits) == (2 * EXPERTS, 2)
    assert (stream.stats.foreseen, stream.stats.foreseen_used) == (0, 0)
    assert stream.stats.bytes_read == 2 * EXPERTS * pack.records[0].stride
    stream.close()


def test_a_guess_under_way_is_left_to_its_layer(pack: Pack) -> None:
    reader = SlowReader()
    stream = reader.stream(pack, 2 * EXPERTS)
    stream.foresee(1, [2, 5], EXPERTS)
    stream.fill()
    assert len(reader.asked) == 2 * EXPERTS  # each once
    assert check_batches(pack, stream, 1, [2, 7], early=False, slots=2 * EXPERTS) == 2
    assert (stream.stats.foreseen, stream.stats.foreseen_used) == (2, 1)
    stream.close()


@pytest.mark.usefixtures("by_threes")
def test_a_damaged_record_is_told_once_and_kept_by_nobody(tmp_path: Path) -> None:
    with Pack.open(two_layers(tmp_path)) as pack:
        flip_bit(pack, 1, 0)
        stream = ExpertStream(pack, 2 * EXPERTS)
        with pytest.raises(MismatchError, match=r"layer 1, expert 0 .* is damaged"):
            stream.fill()
        assert stream._cache.records.keys() == {(0, 0), (0, 1)}
        check_slots(stream)
        while stream.fill():  # whoever wants to may go on
            pass
        assert stream._cache.records.keys() == ALL - {(1, 0)}
        assert check_batches(pack, stream, 1, [3, 4], early=False, slots=2 * EXPERTS) == 2
        with pytest.raises(MismatchError, match=r"layer 1, expert 0 .* is damaged"):
            decode(stream, 1, [0, 3])
        check_slots(stream)
        stream.close()


def test_a_disk_that_fails_is_told(pack: Pack) -> None:
    stream = FaultyReader(4096, errno.EIO).stream(pack, 4)
    with pytest.raises(StorageError, match=r"layer 0, expert 0 .* cannot be read: Input/output error"):
        stream.fill()
    check_slots(stream)
    assert len(stream._cache.free) == 4
    stream.close()


class Interrupted(SlowReader):
    """Is interrupted while a read is waited for."""

    def read(self, asked: Asked) -> list[tuple[int, int, int]]:
        if asked.ticket == 3:
            raise KeyboardInterrupt
        return super().read(asked)


def test_an_interrupt_leaves_no_read_behind(pack: Pack) -> None:
    reader = Interrupted()
    stream = reader.stream(pack, 6)
    with pytest.raises(KeyboardInterrupt):
        stream.fill()
    assert not reader.queued
    assert not stream._arrivals
    check_slots(stream)
    assert check_batches(pack, stream, 0, list(range(EXPERTS)), early=False, slots=6) == EXPERTS
    stream.close()
