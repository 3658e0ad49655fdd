"""Records that are read on a guess: they wait their turn, count when they are used, and take nothing from the rest."""

from collections.abc import Iterator

import numpy as np
import pytest
from slow_reader import EXPERTS, SlowReader, check_batches, decode, two_layers

from moepack.layout.reader import Pack
from moepack.runtime.streaming.foresight import FRUITLESS, REST, TRIAL


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    with Pack.open(two_layers(tmp_path_factory.mktemp("streamed"))) as opened:
        yield opened


def test_a_guess_waits_its_turn_and_counts_when_it_is_used(pack: Pack) -> None:
    reader = SlowReader()
    stream = reader.stream(pack, 8)
    stream.foresee(1, [2, 5], EXPERTS)
    assert [read.urgent for read in reader.queued] == [False, False]
    assert check_batches(pack, stream, 0, [1, 3], early=False, slots=8) == 2
    assert len(reader.queued) == 2  # what was wanted came first
    assert check_batches(pack, stream, 1, [2, 7], early=False, slots=8) == 2
    assert len(reader.hurried) == 1  # 2 is wanted now
    assert len(reader.cancelled) == 1  # 5 had not begun
    assert (stream.stats.foreseen, stream.stats.foreseen_used) == (1, 1)
    assert (stream.stats.records_read, stream.stats.hits) == (4, 0)
    stream.close()


def test_a_cancelled_guess_leaves_the_record_that_made_room(pack: Pack) -> None:
    reader = SlowReader()
    stream = reader.stream(pack, 3)
    decode(stream, 0, [1, 2])
    decode(stream, 0, [3])
    stream.foresee(1, [4], EXPERTS)
    assert len(stream._cache.records) == 2
    decode(stream, 1, [])
    assert len(reader.cancelled) == 1
    assert stream._cache.records.keys() == {(0, 1), (0, 2), (0, 3)}
    assert check_batches(pack, stream, 0, [1, 2, 3], early=False, slots=3) == 3
    assert stream.stats.records_read == 3
    stream.close()


def test_a_guess_spares_what_it_names_and_reads_the_likeliest_only(pack: Pack) -> None:
    reader = SlowReader()
    stream = reader.stream(pack, 4)
    decode(stream, 1, [1, 2])
    decode(stream, 0, [5])
    decode(stream, 0, [6])
    stream.foresee(1, [3, 4, 1, 2], 1)
    assert len(reader.queued) == 1
    assert {(1, 1), (1, 2)} <= stream._cache.records.keys()
    stream.close()


def test_a_disk_that_is_busy_is_no_reason_not_to_guess(pack: Pack) -> None:
    """The reads of a guess follow those that are needed, with nothing between."""
    reader = SlowReader()
    stream = reader.stream(pack, 8)
    visit = stream.batches(0, [1, 3])
    assert not next(visit)
    assert stream.may_foresee
    stream.foresee(1, [4], 1)
    assert [read.urgent for read in reader.queued] == [True, True, False]
    stream.close()


def test_no_guess_takes_what_the_present_layer_needs(pack: Pack) -> None:
    reader = SlowReader()
    stream = reader.stream(pack, 3)
    visit = stream.batches(0, [1, 2, 3])
    handed = [record for _ in range(4) for record in next(visit)]
    stream.foresee(1, [4, 5], EXPERTS)
    assert not reader.queued
    assert all(np.array_equal(record, pack.read_record(0, expert)) for expert, record in handed)
    stream.close()


def test_guessing_rests_when_it_does_not_pay(pack: Pack) -> None:
    stream = SlowReader().stream(pack, 2 * EXPERTS)
    for _ in range(TRIAL):
        stream._foresight.judge(used=False)
    assert not stream.may_foresee
    stream.foresee(0, [1], EXPERTS)
    assert not stream._arrivals
    for _ in range(REST):
        stream._foresight.visit()
    assert stream.may_foresee
    stream.close()


def test_guessing_rests_when_all_is_in_memory(pack: Pack) -> None:
    stream = SlowReader().stream(pack, 2 * EXPERTS)
    list(stream.records(0, range(EXPERTS)))
    for _ in range(FRUITLESS):
        stream.foresee(0, [1, 2], EXPERTS)
    assert not stream.may_foresee
    stream.close()
