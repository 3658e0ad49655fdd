"""Streaming: records arrive whole, in order and checked, whatever the slots; no fault becomes a token."""

import errno
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import numpy as np
import pytest
from checkpoints import TINY, CheckpointMaker, Variant
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import build_pack
from tinypack import build, tiny_model, tiny_plan

from moepack.layout.reader import Pack
from moepack.manifests.errors import MismatchError, StorageError, UsageError
from moepack.runtime.disk import DEFAULT
from moepack.runtime.engine import Engine, EngineOptions
from moepack.runtime.experts import ExpertStream
from moepack.runtime.streaming.arrivals import Arrivals, Arrived
from moepack.runtime.streaming.foresight import FRUITLESS, REST, TRIAL
from moepack.runtime.streaming.slots import HUGE_PAGE, slot_pitch

LAYERS, EXPERTS = 4, 9


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    folder = tmp_path_factory.mktemp("streamed")
    build(folder / "pack", tiny_plan(folder, tiny_model(layers=2, experts=EXPERTS)))
    with Pack.open(folder / "pack") as opened:
        yield opened


@dataclass
class Asked:
    """A range that was asked for."""

    ticket: int
    fd: int
    offset: int
    to: list[np.ndarray]
    urgent: bool

    def spoil(self, begun: bool) -> None:
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
        self.queued[-1].spoil(urgent)
        self.asked.append(self.queued[-1])
        self.most = max(self.most, sum(len(read.to) for read in self.queued))

    def hurry(self, ticket: int) -> None:
        self.hurried.append(ticket)
        for read in self.queued:
            if read.ticket == ticket:
                read.urgent = True
                read.spoil(True)

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

    def idle(self) -> bool:
        return not self.queued

    def busy_seconds(self) -> float:
        return 0.0


@settings(max_examples=200, deadline=None)
@given(slots=st.integers(1, 40), data=st.data())
def test_every_record_is_the_packs_whatever_the_slots_and_the_order(
    pack: Pack, slots: int, data: st.DataObject
) -> None:
    """Sweeps, decoding and guesses in any order, ended early or not, with reads that arrive in any order."""
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
    how, handed = data.draw(st.sampled_from(["records", "batches", "foresee", "learn"])), 0
    if how == "foresee":
        stream.foresee(layer, experts)
    elif how == "learn":
        stream.learn(layer, np.array([experts], np.int32))
    elif how == "records":
        handed = check_records(pack, stream, layer, experts, early=data.draw(st.booleans()))
    else:
        handed = check_batches(pack, stream, layer, experts, early=data.draw(st.booleans()), slots=slots)
    check_slots(stream)
    return handed


def check_records(pack: Pack, stream: ExpertStream, layer: int, experts: list[int], *, early: bool) -> int:
    handed = []
    for expert, record in stream.records(layer, experts):
        handed.append(expert)
        assert np.array_equal(record, pack.read_record(layer, expert))
        if early:
            return 1
    assert handed == experts
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
    assert check_records(pack, stream, 1, list(range(EXPERTS)), early=False) == EXPERTS
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
    while stream._arrivals._news.qsize() < 2 * 3:  # each is whole, and then checked
        time.sleep(0.001)
    assert {expert for expert, _ in next(visit)} == {1, 4, 7}
    stream.close()


class Held:
    """Digests that are not told before they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = Event()
        self._judge = Arrivals._damage
        monkeypatch.setattr(Arrivals, "_damage", lambda *record: self._late(*record))

    def _late(self, *record: Any) -> MismatchError | None:
        assert self.go.wait(10)
        return self._judge(*record)


def test_decoding_does_not_wait_for_digests_before_it_confirms(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    with closing(ExpertStream(pack, 2 * EXPERTS)) as stream:
        for layer in range(2):
            assert check_batches(pack, stream, layer, [1, 4, 7], early=False, slots=2 * EXPERTS) == 3
        assert not stream._cache.records
        held.go.set()
        stream.confirm()
        assert len(stream._cache.records) == 6


def test_a_slot_is_not_given_away_before_its_record_is_checked(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the digest would be of another record's bytes, and good ones would seem damaged."""
    held = Held(monkeypatch)
    reader = SlowReader()
    with closing(reader.stream(pack, 2)) as stream:
        visit = stream.batches(0, [1, 3, 4])
        handed = [expert for _ in range(3) for expert, _ in next(visit)]
        assert (handed, len(reader.asked)) == ([1, 3], 2)
        held.go.set()
        assert [expert for batch in visit for expert, _ in batch] == [4]
        stream.confirm()


def test_a_damaged_record_is_found_before_anything_is_confirmed(tmp_path: Path) -> None:
    build(tmp_path / "pack", tiny_plan(tmp_path, tiny_model(layers=2, experts=EXPERTS)))
    with Pack.open(tmp_path / "pack") as pack, closing(ExpertStream(pack, 8)) as stream:
        flip_bit(pack, 0, 4)
        with pytest.raises(MismatchError, match=r"layer 0, expert 4 .* is damaged"):
            computed_with(stream)
        check_slots(stream)
        assert (0, 4) not in stream._cache.records


def computed_with(stream: ExpertStream) -> None:
    """As for one token: every layer, and then the question whether that was good."""
    for layer in range(2):
        list(stream.batches(layer, [1, 4, 7]))
    stream.confirm()


def test_the_digest_of_a_guess_is_not_waited_for(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    reader = SlowReader()
    with closing(reader.stream(pack, 8)) as stream:
        stream.foresee(1, [3])
        reader.deliver()
        while stream._arrivals._news.empty():
            time.sleep(0.001)
        stream.confirm()
        assert (1, 3) in stream._arrivals
        held.go.set()


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


class FaultyReader(SlowReader):
    """Answers every read as told."""

    def __init__(self, got: int, error: int) -> None:
        super().__init__()
        self.answer = (got, error)

    def read(self, asked: Asked) -> list[tuple[int, int, int]]:
        return [(asked.ticket + index, *self.answer) for index in range(len(asked.to))]


@pytest.mark.parametrize("way", ["records", "batches"])
def test_an_input_output_error_names_the_place(pack: Pack, way: str) -> None:
    stream = FaultyReader(4096, errno.EIO).stream(pack, 4)
    stride = pack.records[1].stride
    expected = rf"layer_01\.bin: layer 1, expert 3 \(bytes {3 * stride}\+{stride}\) cannot be read: Input/output error"
    with pytest.raises(StorageError, match=expected):
        list(getattr(stream, way)(1, [3, 5]))
    check_slots(stream)
    stream.close()


def test_a_guess_that_cannot_be_read_is_no_error_until_it_is_wanted(pack: Pack) -> None:
    reader = FaultyReader(4096, errno.EIO)
    stream = reader.stream(pack, 4)
    stream.foresee(1, [3])
    reader.deliver()
    while stream._arrivals._news.empty():
        time.sleep(0.001)
    stream.foresee(1, [])
    check_slots(stream)
    with pytest.raises(StorageError, match="expert 3"):
        decode(stream, 1, [3, 5])
    stream.close()


def test_a_guess_waits_its_turn_and_counts_when_it_is_used(pack: Pack) -> None:
    reader = SlowReader()
    stream = reader.stream(pack, 8)
    stream.foresee(1, [2, 5])
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
    stream.foresee(1, [4])
    assert len(stream._cache.records) == 2
    decode(stream, 1, [])
    assert len(reader.cancelled) == 1
    assert stream._cache.records.keys() == {(0, 1), (0, 2), (0, 3)}
    assert check_batches(pack, stream, 0, [1, 2, 3], early=False, slots=3) == 3
    assert stream.stats.records_read == 3
    stream.close()


def test_no_guess_takes_what_the_present_layer_needs(pack: Pack) -> None:
    reader = SlowReader()
    stream = reader.stream(pack, 3)
    visit = stream.batches(0, [1, 2, 3])
    handed = [record for _ in range(4) for record in next(visit)]
    stream.foresee(1, [4, 5])
    assert not reader.queued
    assert all(np.array_equal(record, pack.read_record(0, expert)) for expert, record in handed)
    stream.close()


def test_guessing_rests_when_it_does_not_pay(pack: Pack) -> None:
    stream = SlowReader().stream(pack, 2 * EXPERTS)
    for _ in range(TRIAL):
        stream._foresight.judge(used=False)
    assert not stream.may_foresee
    stream.foresee(0, [1])
    assert not stream._arrivals
    for _ in range(REST):
        stream._foresight.visit()
    assert stream.may_foresee
    stream.close()


def test_guessing_rests_when_all_is_in_memory(pack: Pack) -> None:
    stream = SlowReader().stream(pack, 2 * EXPERTS)
    list(stream.records(0, range(EXPERTS)))
    for _ in range(FRUITLESS):
        stream.foresee(0, [1, 2])
    assert not stream.may_foresee
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


@pytest.fixture
def damaged(make_checkpoint: CheckpointMaker, tmp_path: Path) -> Path:
    build_pack(make_checkpoint(Variant(TINY)), tmp_path / "pack")
    return tmp_path / "pack"


def flip_bit(pack: Pack, layer: int, expert: int) -> None:
    """Damage a record on disk."""
    offset = pack.address(layer, expert).offset + 77
    with (pack.path / pack.manifest.layers[layer].file).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))


def test_a_flipped_bit_never_becomes_a_token(damaged: Path) -> None:
    with Pack.open(damaged) as pack:
        flip_bit(pack, 2, 5)
    with Engine.open(damaged) as engine:
        session = engine.new_session()
        with pytest.raises(MismatchError, match=r"layer_02\.bin: layer 2, expert 5 .* is damaged"):
            session.extend(range(200))
        with pytest.raises(UsageError, match="ended by an error"):
            session.extend([1])
        with pytest.raises(MismatchError, match="layer 2, expert 5"):
            engine.new_session().extend(range(200))
    with Engine.open(damaged, EngineOptions(check_digests=False)) as engine:
        assert np.isfinite(engine.new_session().extend(range(200))).all()


@pytest.mark.parametrize("slots", [1, 3, 40])
@pytest.mark.parametrize("layer", range(4))
def test_a_damaged_record_never_reaches_a_token_of_decoding(
    damaged: Path, monkeypatch: pytest.MonkeyPatch, layer: int, slots: int
) -> None:
    """Digests are told late, and every expert of one layer is damaged, the last layer's too."""
    judge = Arrivals._damage

    def late(*record: Any) -> MismatchError | None:
        time.sleep(0.02)
        return judge(*record)

    monkeypatch.setattr(Arrivals, "_damage", late)
    with Pack.open(damaged) as pack:
        for expert in range(pack.model.num_experts):
            flip_bit(pack, layer, expert)
    with Engine.open(damaged, EngineOptions(slots=slots)) as engine:
        session = engine.new_session()
        with pytest.raises(MismatchError, match=f"layer {layer}, expert .* is damaged"):
            session.extend([1])
        assert session.position == 0
        with pytest.raises(UsageError, match="ended by an error"):
            session.extend([1])


def test_a_file_truncated_under_us_is_an_error(damaged: Path) -> None:
    with Engine.open(damaged) as engine:
        os.truncate(damaged / "experts" / "layer_03.bin", 5000)
        with pytest.raises(StorageError, match=r"layer_03\.bin: layer 3, expert \d+ .* ends after \d+ bytes"):
            engine.new_session().extend(range(200))


@pytest.mark.parametrize("fault", ["truncated", "descriptor"])
def test_a_fault_while_generating_ends_with_one_sentence_and_the_exit_code(damaged: Path, fault: str) -> None:
    """The file is cut, or its descriptor replaced by one that cannot be read, after some tokens were computed."""
    with Engine.open(damaged, EngineOptions(slots=6)) as engine:
        session = engine.new_session()
        session.extend([1, 2, 3])
        address = engine._experts._pack.address(3, 0)
        if fault == "truncated":
            os.truncate(damaged / "experts" / "layer_03.bin", 0)
        else:
            folder = os.open(damaged, os.O_RDONLY)
            os.dup2(folder, address.fd)
            os.close(folder)
        with pytest.raises(StorageError, match=r"layer_03\.bin: layer 3, expert \d+ .*") as caught:
            session.extend(range(100))
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 4
        with pytest.raises(UsageError, match="ended by an error"):
            session.extend([1])
