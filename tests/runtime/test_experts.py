"""Streaming: records arrive whole, in order and checked, whatever the slots."""

import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_reader import EXPERTS, SlowReader, check_batches, check_records, check_slots, decode, two_layers, until

from moepack.layout.reader import Pack
from moepack.runtime.disk import DEFAULT
from moepack.runtime.experts import ExpertStream
from moepack.runtime.streaming.slots import HUGE_PAGE, slot_pitch


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    with Pack.open(two_layers(tmp_path_factory.mktemp("streamed"))) as opened:
        yield opened


@settings(max_examples=200, deadline=None)
@given(slots=st.integers(1, 40), data=st.data())
def test_every_record_is_the_packs_whatever_the_slots_and_the_order(
    pack: Pack, slots: int, data: st.DataObject
) -> None:
    """Sweeps, decoding, guesses and filling in any order, ended early or not, with reads that arrive in any order."""
    order = random.Random(data.draw(st.integers(0, 2**32)))
    reader = SlowReader(order.randrange)
    with closing(reader.stream(pack, slots)) as stream:
        handed = sum(one_step(pack, stream, data, slots) for _ in range(data.draw(st.integers(0, 12))))
        stats = stream.stats
        assert all(not read.urgent for read in reader.queued)
        assert stats.bytes_read == stats.records_read * pack.records[0].stride
        assert stats.records_read + stats.hits >= handed


def one_step(pack: Pack, stream: ExpertStream, data: st.DataObject, slots: int) -> int:
    """Something that an engine may do; how many records it handed out."""
    layer = data.draw(st.integers(0, 1))
    experts = data.draw(st.lists(st.integers(0, EXPERTS - 1), min_size=1, unique=True))
    how, handed = data.draw(st.sampled_from(["records", "batches", "foresee", "learn", "fill"])), 0
    if how == "foresee":
        stream.foresee(layer, experts, EXPERTS)
    elif how == "fill":
        stream.fill()
    elif how == "learn":
        stream.learn(layer, np.array([experts], np.int32))
    elif how == "records":
        lag = data.draw(st.integers(0, min(3, slots - 1)))
        handed = check_records(pack, stream, layer, experts, early=data.draw(st.booleans()), lag=lag)
    else:
        handed = check_batches(pack, stream, layer, experts, early=data.draw(st.booleans()), slots=slots)
    check_slots(stream)
    return handed


@pytest.mark.parametrize("slots", [1, 2, 4, 6])
def test_reads_run_ahead_in_every_sweep(pack: Pack, slots: int) -> None:
    """Also in later ones, when all slots hold records of this very sweep that are needed later."""
    reader = SlowReader()
    stream = reader.stream(pack, slots)
    for _ in range(3):
        reader.most = 0
        assert len(list(stream.records(0, range(EXPERTS)))) == EXPERTS
        assert min(slots, 2) <= reader.most <= slots
    assert sum(len(read.to) for read in reader.asked) == stream.stats.records_read  # nothing was read for nothing
    stream.close()


def test_a_record_dropped_before_its_turn_is_no_hit(pack: Pack) -> None:
    stream = ExpertStream(pack, 2)
    list(stream.records(0, [7, 8]))
    assert [expert for expert, _ in stream.records(0, [0, 7, 8])] == [0, 7, 8]
    assert stream.stats.records_read + stream.stats.hits == 5
    assert stream.stats.hits == 1  # 8 made room for 0, which came first
    stream.close()


def test_neighbours_are_read_together(pack: Pack) -> None:
    reader = SlowReader()
    stream = reader.stream(pack, 40, depth=4)
    decode(stream, 0, [3])
    list(stream.records(0, [0, 1, 2, 3, 4, 6, 7, 8]))
    assert [len(read.to) for read in reader.asked[1:]] == [2, 1, 1, 2, 1]  # [0, 1] [2] | [4] | [6, 7] [8]
    stream.close()


class InterruptedReader(SlowReader):
    """Is interrupted in its third read, once started or not."""

    def __init__(self, *, started: bool) -> None:
        super().__init__()
        self.started = started
        self.abandoned = 0

    def submit(self, ticket: int, *where: Any, **how: Any) -> None:
        if ticket != 3 or self.started:
            super().submit(ticket, *where, **how)
        if ticket == 3:
            raise KeyboardInterrupt

    def abandon(self) -> None:
        self.abandoned += 1
        super().abandon()


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("way", ["records", "batches"])
def test_an_interrupt_loses_no_slot_and_leaves_no_read_behind(pack: Pack, way: str, started: bool) -> None:
    reader = InterruptedReader(started=started)
    stream = reader.stream(pack, 3)
    with pytest.raises(KeyboardInterrupt):
        next(getattr(stream, way)(0, range(EXPERTS)))
    assert reader.abandoned == 1
    assert not reader.queued
    assert len(stream._cache.free) == 3
    assert check_records(pack, stream, 1, list(range(EXPERTS)), early=False, lag=0) == EXPERTS
    stream.close()


def test_a_visit_that_was_never_finished_is_ended_by_the_next(pack: Pack) -> None:
    reader = SlowReader()
    stream = reader.stream(pack, 4)
    unfinished = stream.batches(0, [0, 1, 2, 3])
    next(unfinished)
    check_batches(pack, stream, 1, [5, 6, 7], early=False, slots=4)
    unfinished.close()  # type: ignore[attr-defined]
    check_slots(stream)
    stream.close()


def test_a_chunk_reads_each_expert_once_and_resident_ones_not_at_all(pack: Pack) -> None:
    stream = ExpertStream(pack, 2 * EXPERTS)
    for _ in range(3):
        for layer in range(2):
            assert [expert for expert, _ in stream.records(layer, range(EXPERTS))] == list(range(EXPERTS))
    assert stream.stats.records_read == 2 * EXPERTS
    assert stream.stats.hits == 4 * EXPERTS
    stream.close()


def test_layers_do_not_push_out_each_others_records(pack: Pack) -> None:
    """Three slots per layer and the same three experts each time."""
    stream = ExpertStream(pack, 6)
    for _ in range(5):
        for layer in range(2):
            decode(stream, layer, [1, 4, 7])
    assert stream.stats.records_read == 6
    assert stream.stats.hits == 24
    stream.close()


def test_all_missing_are_asked_for_before_anything_is_handed_out(pack: Pack) -> None:
    reader = SlowReader()
    stream = reader.stream(pack, 8)
    decode(stream, 0, [2, 5])
    visit = stream.batches(0, [1, 2, 4, 5, 7])
    assert {expert for expert, _ in next(visit)} == {2, 5}  # in memory
    assert len(reader.queued) == 3
    assert [expert for expert, _ in next(visit)] == [1]  # as they arrive
    reader.pick = lambda reads: 1
    assert [expert for expert, _ in next(visit)] == [7]
    stream.close()


def test_what_has_arrived_comes_together(pack: Pack) -> None:
    reader = SlowReader()
    stream = reader.stream(pack, 8)
    decode(stream, 0, [2])
    visit = stream.batches(0, [1, 2, 4, 7])
    next(visit)
    for _ in range(3):
        reader.deliver()
    with stream._arrivals.checking():
        until(lambda: stream._arrivals._news.qsize() == 2 * 3)  # each is whole, and then checked
    assert {expert for expert, _ in next(visit)} == {1, 4, 7}
    stream.close()


def test_decoding_with_fewer_slots_than_experts(pack: Pack) -> None:
    stream = ExpertStream(pack, 2)
    for _ in range(3):
        assert check_batches(pack, stream, 0, [1, 3, 4, 6, 8], early=False, slots=2) == 5
    stream.close()


def test_slots_start_on_huge_pages_and_waste_little(pack: Pack) -> None:
    stream = ExpertStream(pack, 1)
    _, record = next(iter(stream.records(0, [0])))
    assert record.ctypes.data % HUGE_PAGE == 0
    assert slot_pitch(pack) == pack.records[0].stride
    stream.close()


def test_a_sweep_leaves_what_decoding_uses(pack: Pack) -> None:
    """Ten of the slots' records are used all the time; a sweep over everything passes through the other slots."""
    stream = ExpertStream(pack, 14, tuning=replace(DEFAULT, depth=2))
    hot = [(layer, expert) for layer in range(2) for expert in range(0, EXPERTS, 2)]
    for _ in range(4):
        for layer in range(2):
            decode(stream, layer, range(0, EXPERTS, 2))
    for layer in range(2):
        list(stream.records(layer, range(EXPERTS)))
    assert all(key in stream._cache.records for key in hot)
    stream.close()


def test_what_a_prompt_used_stays_for_decoding(pack: Pack) -> None:
    stream = ExpertStream(pack, 6, tuning=replace(DEFAULT, depth=2))
    stream.learn(0, np.array([[7, 8]] * 5, np.int32))
    list(stream.records(0, range(EXPERTS)))
    list(stream.records(1, range(EXPERTS)))
    assert {(0, 7), (0, 8)} <= stream._cache.records.keys()
    stream.close()
