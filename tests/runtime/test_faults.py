"""Damage, failing disks and truncated files while a model runs: one sentence, an exit code, and no token."""

import errno
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TINY, CheckpointMaker, Variant
from moe_run_program import built, called, started
from packs import build_pack
from slow_reader import EXPERTS, Asked, FaultyReader, check_slots, decode, flip_bit, two_layers, until, writable

from moepack.convert.shipped import CHECKPOINT
from moepack.layout.reader import Pack
from moepack.manifests.errors import MismatchError, StorageError, UsageError
from moepack.runtime import _native
from moepack.runtime.engine import Engine, EngineOptions
from moepack.runtime.experts import ExpertStream
from moepack.runtime.streaming.arrivals import Arrivals
from moepack.runtime.streaming.cache import Key


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    with Pack.open(two_layers(tmp_path_factory.mktemp("streamed"))) as opened:
        yield opened


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
    stream.foresee(1, [3], EXPERTS)
    reader.deliver()
    until(lambda: not stream._arrivals._news.empty())
    stream.foresee(1, [], EXPERTS)
    check_slots(stream)
    with pytest.raises(StorageError, match="expert 3"):
        decode(stream, 1, [3, 5])
    stream.close()


class Stubborn(FaultyReader):
    """Fails in records at the start of a layer, and is in the middle of every read."""

    def cancel(self, ticket: int) -> bool:
        return False

    def read(self, asked: Asked) -> list[tuple[int, int, int]]:
        return super().read(asked) if asked.offset == 0 else asked.read()


def test_a_defect_of_ours_is_told_and_not_waited_for(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*read: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(Arrivals, "_short", short)
    stream = ExpertStream(pack, 4)
    with pytest.raises(RuntimeError, match="ours"):
        decode(stream, 0, [1])
    stream.close()


def heard_of(stream: ExpertStream, key: Key) -> bool:
    """Whether a read's end has become known, which visits hear of sooner or later."""
    decode(stream, 1, [7])
    return key not in stream._arrivals


def test_a_wrong_guess_that_cannot_be_read_is_no_error(pack: Pack) -> None:
    reader = Stubborn(0, errno.EIO)
    stream = reader.stream(pack, 4)
    stream.foresee(1, [0], EXPERTS)
    decode(stream, 1, [3, 5])
    if reader.queued:  # else it came while digests were waited for
        reader.deliver()
    until(lambda: heard_of(stream, (1, 0)))
    with pytest.raises(StorageError, match="expert 0"):
        decode(stream, 1, [0])
    check_slots(stream)
    stream.close()


@pytest.fixture
def damaged(make_checkpoint: CheckpointMaker, tmp_path: Path) -> Path:
    build_pack(make_checkpoint(Variant(TINY)), tmp_path / "pack")
    return tmp_path / "pack"


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


def not_a_number(pack: Pack, layer: int, expert: int) -> None:
    """Damage a record so that all its scales are none."""
    address = pack.address(layer, expert)
    with writable(pack.path / pack.manifest.layers[layer].file).open("r+b") as file:
        file.seek(address.offset)
        file.write(b"\xff" * address.size)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests are told when much has been computed with their records."""
    judge = Arrivals._damage

    def after_a_while(*record: Any) -> MismatchError | None:
        time.sleep(0.02)
        return judge(*record)

    monkeypatch.setattr(Arrivals, "_damage", after_a_while)


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("damage", [flip_bit, not_a_number])
@pytest.mark.parametrize("slots", [1, 3, 40])
@pytest.mark.parametrize("layer", range(4))
def test_a_damaged_record_never_reaches_a_token_of_decoding(
    damaged: Path, layer: int, slots: int, damage: Callable[[Pack, int, int], None]
) -> None:
    """Every expert of one layer is damaged, the last layer's too; what is computed with them may be no numbers."""
    file = damaged / "experts" / f"layer_{layer:02}.bin"
    with Pack.open(damaged) as pack, Engine.open(damaged, EngineOptions(slots=slots)) as engine:
        wanted, good = engine.new_session().extend([1]), file.read_bytes()
    with Pack.open(damaged) as pack, Engine.open(damaged, EngineOptions(slots=slots)) as engine:
        for expert in range(pack.model.num_experts):
            damage(pack, layer, expert)
        for session in (engine.new_session(), engine.new_session()):  # the second finds no bad record in memory
            with pytest.raises(MismatchError, match=f"{file}: layer {layer}, expert .* is damaged"):
                session.extend([1])
            assert session.position == 0
            with pytest.raises(UsageError, match="ended by an error"):
                session.extend([1])
        writable(file).write_bytes(good)
        assert np.array_equal(engine.new_session().extend([1]), wanted)


def test_a_file_truncated_under_us_is_an_error(damaged: Path) -> None:
    with Engine.open(damaged) as engine:
        os.truncate(writable(damaged / "experts" / "layer_03.bin"), 5000)
        with pytest.raises(StorageError, match=r"layer_03\.bin: layer 3, expert \d+ .* ends after \d+ bytes"):
            engine.new_session().extend(range(200))


@pytest.mark.parametrize("fault", ["truncated", "descriptor"])
def test_a_fault_in_a_session_under_way_ends_it_with_one_sentence_and_the_exit_code(damaged: Path, fault: str) -> None:
    """The file is cut, or its descriptor replaced by one that cannot be read, after some tokens were computed."""
    with Engine.open(damaged, EngineOptions(slots=6)) as engine:
        session = engine.new_session()
        session.extend([1, 2, 3])
        address = engine._experts._pack.address(3, 0)
        if fault == "truncated":
            os.truncate(writable(damaged / "experts" / "layer_03.bin"), 0)
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


def answering(pack: Path) -> "subprocess.Popen[bytes]":
    """A run that has begun its answer."""
    run = started(pack)
    assert run.stdout is not None
    run.stdout.read(5)
    return run


def ended(run: "subprocess.Popen[bytes]") -> str:
    """The last line of a run that ended by an error, which is no defect of ours."""
    _, errors = run.communicate(timeout=60)
    assert b"Traceback" not in errors
    return errors.decode().splitlines()[-1]


def test_a_file_truncated_while_it_answers_ends_with_one_sentence_and_its_code(tmp_path: Path) -> None:
    pack = built(tmp_path / "pack", CHECKPOINT)
    layer = pack / "experts" / "layer_01.bin"
    run = answering(pack)
    os.truncate(writable(layer), 0)
    sentence = ended(run)
    assert run.returncode == 4
    assert re.match(rf"error: {layer}: layer 1, expert \d+ .* ends after 0 bytes; the file was truncated", sentence)


def test_a_record_damaged_while_it_answers_ends_with_one_sentence_and_its_code(tmp_path: Path) -> None:
    pack = built(tmp_path / "pack", CHECKPOINT)
    layer = pack / "experts" / "layer_01.bin"
    run = answering(pack)
    with writable(layer).open("r+b") as file:
        file.write(b"\xff" * layer.stat().st_size)
    sentence = ended(run)
    assert run.returncode == 1
    assert re.match(rf"error: {layer}: layer 1, expert \d+ .* is damaged: its bytes differ", sentence)


class Failing(_native.ReadPool):
    """A disk that fails after so many records."""

    good = 200

    def next(self) -> tuple[int, int, int] | None:
        if (arrival := super().next()) is None or self.good > 0:
            self.good -= 1
            return arrival
        return (arrival[0], 0, errno.EIO)


def test_a_disk_that_fails_while_it_answers_ends_with_what_was_said_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = built(tmp_path / "pack", CHECKPOINT)
    arguments = ("generate", pack, "--raw", "-p", "Once", "-n", 40, "--temp", 0, "--slots", 1)
    whole = called(*arguments)
    monkeypatch.setattr(_native, "ReadPool", Failing)
    cut = called(*arguments)
    assert (whole.returncode, cut.returncode) == (0, 4)
    assert 0 < len(cut.stdout) < len(whole.stdout)
    assert whole.stdout.startswith(cut.stdout.rstrip("\n"))
    sentence = rf"error: {pack}/experts/layer_\d+\.bin: layer \d+, expert \d+ .* cannot be read: Input/output error"
    assert re.match(sentence, cut.stderr.splitlines()[-1])
