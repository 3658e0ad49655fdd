"""Streaming: records arrive whole, in order and checked, whatever the slots; no fault becomes a token."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY, CheckpointMaker, Variant
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import build_pack
from tinypack import build, tiny_model, tiny_plan

from moepack.layout.reader import Pack
from moepack.manifests.errors import MismatchError, StorageError, UsageError
from moepack.runtime import _native
from moepack.runtime.engine import Engine, EngineOptions
from moepack.runtime.experts import HUGE_PAGE, ExpertStream, slot_pitch

LAYERS, EXPERTS = 4, 9


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    folder = tmp_path_factory.mktemp("streamed")
    build(folder / "pack", tiny_plan(folder, tiny_model(layers=2, experts=EXPERTS)))
    with Pack.open(folder / "pack") as opened:
        yield opened


class SlowReader:
    """Does a read only when it is waited for, and spoils its slot until then: one reused too early would show.

    `most` is how many reads were ever asked for and not yet handed out; the test counts what is `handed` out.
    """

    def __init__(self) -> None:
        self.queued: dict[int, tuple[int, int, np.ndarray]] = {}
        self.most = self.last = self.handed = 0

    def submit(self, fd: int, offset: int, to: np.ndarray) -> int:
        to[:] = 0xEE
        self.last += 1
        self.queued[self.last] = (fd, offset, to)
        self.most = max(self.most, self.last - self.handed)
        return self.last

    def wait(self, ticket: int) -> tuple[int, int]:
        fd, offset, to = self.queued[ticket]
        got = os.preadv(fd, [to.data], offset)
        del self.queued[ticket]
        return got, 0

    def drain(self) -> None:
        assert not self.queued


@settings(max_examples=80, deadline=None)
@given(
    slots=st.integers(1, 40),
    k=st.integers(1, 4),
    visits=st.lists(
        st.tuples(st.integers(0, 1), st.sets(st.integers(0, EXPERTS - 1), min_size=1), st.booleans()), max_size=12
    ),
)
def test_every_record_is_the_packs_whatever_the_slots_and_the_order(
    pack: Pack, slots: int, k: int, visits: list[tuple[int, set[int], bool]]
) -> None:
    reader = SlowReader()
    stream = ExpertStream(pack, slots, experts_per_token=k, reader=reader)
    handed = 0
    for layer, experts, early in visits:
        for expert, record in stream.records(layer, sorted(experts)):
            handed += 1
            assert np.array_equal(record, pack.read_record(layer, expert))
            if early:
                break
    assert not reader.queued
    assert stream.stats.bytes_read == stream.stats.records_read * pack.records[0].stride
    assert stream.stats.records_read + stream.stats.hits == handed
    stream.close()


@pytest.mark.parametrize("slots", [1, 2, 4, 6])
def test_reads_run_ahead_in_every_pass(pack: Pack, slots: int) -> None:
    """Also in later ones, when all slots hold records of this very pass that are needed later."""
    reader = SlowReader()
    stream = ExpertStream(pack, slots, experts_per_token=9, reader=reader)
    for _ in range(3):
        reader.most = 0
        for _ in stream.records(0, range(EXPERTS)):
            reader.handed = stream.stats.records_read
        assert reader.most >= min(slots, 2)
        assert reader.most <= slots
    assert reader.last == stream.stats.records_read  # nothing was read for nothing
    stream.close()


def test_a_record_dropped_before_its_turn_is_no_hit(pack: Pack) -> None:
    stream = ExpertStream(pack, 2, experts_per_token=9)
    list(stream.records(0, [7, 8]))
    assert [expert for expert, _ in stream.records(0, [0, 7, 8])] == [0, 7, 8]
    assert stream.stats.records_read + stream.stats.hits == 5
    assert stream.stats.hits == 1  # 8 made room for 0, which came first
    stream.close()


class InterruptedReader(SlowReader):
    """Is interrupted in its third read, once started or not."""

    def __init__(self, *, started: bool) -> None:
        super().__init__()
        self.started = started
        self.drained = 0

    def submit(self, fd: int, offset: int, to: np.ndarray) -> int:
        if self.last != 2:
            return super().submit(fd, offset, to)
        if self.started:
            super().submit(fd, offset, to)
        self.last += 1
        raise KeyboardInterrupt

    def drain(self) -> None:
        self.drained += 1
        for ticket in list(self.queued):
            self.wait(ticket)


@pytest.mark.parametrize("started", [False, True])
def test_an_interrupt_loses_no_slot_and_leaves_no_read_behind(pack: Pack, started: bool) -> None:
    reader = InterruptedReader(started=started)
    stream = ExpertStream(pack, 3, experts_per_token=9, reader=reader)
    with pytest.raises(KeyboardInterrupt):
        next(stream.records(0, range(EXPERTS)))
    assert reader.drained == 1
    assert not reader.queued
    share = stream._shares[0]
    assert len(share.free) + len(share.resident) == 3
    for expert, record in stream.records(1, range(EXPERTS)):
        assert np.array_equal(record, pack.read_record(1, expert))
    stream.close()


def test_a_chunk_reads_each_expert_once_and_resident_ones_not_at_all(pack: Pack) -> None:
    stream = ExpertStream(pack, 2 * EXPERTS, experts_per_token=2)
    for _ in range(3):
        for layer in range(2):
            assert [expert for expert, _ in stream.records(layer, range(EXPERTS))] == list(range(EXPERTS))
    assert stream.stats.records_read == 2 * EXPERTS
    assert stream.stats.hits == 4 * EXPERTS


def test_layers_do_not_push_out_each_others_records(pack: Pack) -> None:
    """Three slots per layer and the same three experts each time: one shared list would never hit."""
    stream = ExpertStream(pack, 6, experts_per_token=3)
    for _ in range(5):
        for layer in range(2):
            list(stream.records(layer, [1, 4, 7]))
    assert stream.stats.records_read == 6
    assert stream.stats.hits == 24


def test_slots_start_on_huge_pages_and_waste_little(pack: Pack) -> None:
    stream = ExpertStream(pack, 1, experts_per_token=1)
    _, record = next(iter(stream.records(0, [0])))
    assert record.ctypes.data % HUGE_PAGE == 0
    assert slot_pitch(pack) == pack.records[0].stride


class FaultyReader:
    """Answers every read as told."""

    def __init__(self, got: int, error: int) -> None:
        self.answer = (got, error)

    def submit(self, fd: int, offset: int, to: np.ndarray) -> int:
        return 1

    def wait(self, ticket: int) -> tuple[int, int]:
        return self.answer

    def drain(self) -> None:
        pass


def test_an_input_output_error_names_the_place(pack: Pack) -> None:
    stream = ExpertStream(pack, 4, experts_per_token=2, reader=FaultyReader(4096, errno.EIO))
    stride = pack.records[1].stride
    expected = rf"layer_01\.bin: layer 1, expert 3 \(bytes {3 * stride}\+{stride}\) cannot be read: Input/output error"
    with pytest.raises(StorageError, match=expected):
        next(stream.records(1, [3, 5]))


def test_the_native_pool_reports_errors_and_early_ends(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    pool, to = _native.ReadPool(2), np.zeros(64, np.uint8)
    descriptor, folder = os.open(tmp_path / "file", os.O_RDONLY), os.open(tmp_path, os.O_RDONLY)
    try:
        assert pool.wait(pool.submit(descriptor, 10, to)) == (64, 0)
        assert to.tolist() == list(range(10, 74))
        assert pool.wait(pool.submit(descriptor, 90, to)) == (10, 0)
        assert pool.wait(pool.submit(descriptor, 1000, to)) == (0, 0)
        assert pool.wait(pool.submit(folder, 0, to)) == (0, errno.EISDIR)
        assert pool.wait(pool.submit(-1, 0, to)) == (0, errno.EBADF)
        with pytest.raises(IndexError, match="no such read"):
            pool.wait(999)
    finally:
        os.close(descriptor)
        os.close(folder)


def test_many_reads_at_once(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
    content.tofile(tmp_path / "file")
    pool = _native.ReadPool(8)
    with (tmp_path / "file").open("rb") as file:
        buffers = [np.zeros(4096, np.uint8) for _ in range(256)]
        tickets = [pool.submit(file.fileno(), 4096 * i, buffer) for i, buffer in enumerate(buffers)]
        assert [pool.wait(ticket) for ticket in reversed(tickets)] == [(4096, 0)] * 256
    assert np.array_equal(np.concatenate(buffers), content)


@pytest.fixture
def damaged(make_checkpoint: CheckpointMaker, tmp_path: Path) -> Path:
    build_pack(make_checkpoint(Variant(TINY)), tmp_path / "pack")
    return tmp_path / "pack"


def test_a_flipped_bit_never_becomes_a_token(damaged: Path) -> None:
    with Pack.open(damaged) as pack:
        address = pack.address(2, 5)
    with (damaged / "experts" / "layer_02.bin").open("r+b") as file:
        file.seek(address.offset + 77)
        byte = file.read(1)[0]
        file.seek(address.offset + 77)
        file.write(bytes([byte ^ 16]))
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


def test_a_file_truncated_under_us_is_an_error(damaged: Path) -> None:
    with Engine.open(damaged) as engine:
        os.truncate(damaged / "experts" / "layer_03.bin", 5000)
        with pytest.raises(StorageError, match=r"layer_03\.bin: layer 3, expert 0 .* ends after 5000 bytes"):
            engine.new_session().extend(range(200))
