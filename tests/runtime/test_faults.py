"""Damage, failing disks and truncated files while a model runs: one sentence, an exit code, and no token."""

import errno
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TINY, CheckpointMaker, Variant
from moe_run_program import built, started
from packs import build_pack
from slow_reader import EXPERTS, FaultyReader, check_slots, decode, flip_bit
from tinypack import build, tiny_model, tiny_plan

from moepack.convert.shipped import CHECKPOINT
from moepack.layout.reader import Pack
from moepack.manifests.errors import MismatchError, StorageError, UsageError
from moepack.runtime.engine import Engine, EngineOptions
from moepack.runtime.streaming.arrivals import Arrivals


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    folder = tmp_path_factory.mktemp("streamed")
    build(folder / "pack", tiny_plan(folder, tiny_model(layers=2, experts=EXPERTS)))
    with Pack.open(folder / "pack") as opened:
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
    stream.foresee(1, [3])
    reader.deliver()
    while stream._arrivals._news.empty():
        time.sleep(0.001)
    stream.foresee(1, [])
    check_slots(stream)
    with pytest.raises(StorageError, match="expert 3"):
        decode(stream, 1, [3, 5])
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


def test_a_file_truncated_while_it_answers_ends_with_one_sentence_and_its_code(tmp_path: Path) -> None:
    pack = built(tmp_path / "pack", CHECKPOINT)
    layer = pack / "experts" / "layer_01.bin"
    run = started(pack)
    assert run.stdout is not None
    run.stdout.read(5)
    os.truncate(layer, 0)
    _, errors = run.communicate(timeout=60)
    sentence = errors.decode().splitlines()[-1]
    assert run.returncode == 4
    assert re.match(rf"error: {layer}: layer 1, expert \d+ .* ends after 0 bytes; the file was truncated", sentence)
    assert b"Traceback" not in errors
