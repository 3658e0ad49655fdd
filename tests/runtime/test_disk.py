"""How a disk is read: measured once, remembered by disk and record size, and never in the way of a run."""

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tinypack import build, replace_file, tiny_model, tiny_plan

from moepack.layout.reader import Pack
from moepack.manifests.errors import StorageError
from moepack.runtime import disk
from moepack.runtime.disk import DEFAULT, DIRECT, Tuning
from moepack.runtime.experts import ExpertStream
from moepack.runtime.streaming import files
from moepack.runtime.streaming.files import LayerFiles


@pytest.fixture
def pack(tmp_path: Path) -> Iterator[Pack]:
    build(tmp_path / "pack", tiny_plan(tmp_path, tiny_model(layers=2, experts=9)))
    with Pack.open(tmp_path / "pack") as opened:
        yield opened


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where disks are remembered; every pack counts as worth measuring, briefly."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(disk, "SMALL", 0)
    monkeypatch.setattr(disk, "TRIAL_SECONDS", 0.001)
    return tmp_path / "cache" / "moepack" / "disks.json"


def test_a_disk_is_measured_once(pack: Pack, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk.known(pack) is None
    found = disk.tune(pack)
    assert found.measured
    assert (found.gigabytes_per_second or 0) > 0
    monkeypatch.setattr(disk, "measure", lambda pack: pytest.fail("measured again"))
    assert disk.tune(pack) == disk.known(pack) == found
    assert store.exists()


def test_a_small_pack_is_not_measured(pack: Pack, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "SMALL", pack.expert_bytes + 1)
    assert disk.tune(pack) == DEFAULT
    assert not store.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"x": 1}', b'{"KEY": {"access": "direct"}}', b"\xff" * 100, b"{" + b" " * 2_000_000 + b"}"],
)
def test_a_store_that_makes_no_sense_is_written_anew(pack: Pack, store: Path, content: bytes) -> None:
    store.parent.mkdir(parents=True)
    store.write_bytes(content.replace(b"KEY", disk._disk(pack).encode()))
    assert disk.known(pack) is None
    assert disk.tune(pack) == disk.known(pack)


@pytest.mark.parametrize("field", ["depth", "split"])
def test_a_store_cannot_ask_for_the_impossible(pack: Pack, store: Path, field: str) -> None:
    disk._remember(store, disk._disk(pack), replace(DIRECT, measured=True))
    store.write_bytes(
        store.read_bytes().replace(f'"{field}": {getattr(DIRECT, field)}'.encode(), f'"{field}": 0'.encode())
    )
    assert disk.known(pack) is None


def test_other_disks_are_remembered_beside(pack: Pack, store: Path) -> None:
    disk._remember(store, "another", DIRECT)
    disk.tune(pack)
    assert disk._remembered(store)["another"] == DIRECT


def test_a_store_that_cannot_be_written_only_costs_the_measurement(pack: Pack, store: Path) -> None:
    store.parent.parent.write_text("in the way")
    assert disk.tune(pack).measured
    assert disk.known(pack) is None


def test_a_cache_home_that_is_not_absolute_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert disk._store() == Path.home() / ".cache" / "moepack" / "disks.json"


def test_the_preferred_way_wins_unless_another_is_clearly_faster() -> None:
    ways = [DIRECT, replace(DIRECT, depth=16), DEFAULT]
    assert disk._choice(ways, [1.0, 1.05, 1.07]) == replace(DIRECT, gigabytes_per_second=1.0, measured=True)
    assert disk._choice(ways, [1.0, 1.35, 1.4]) == replace(ways[1], gigabytes_per_second=1.35, measured=True)
    assert disk._choice(ways, [1.0, 1.0, 1.4]) == replace(DEFAULT, gigabytes_per_second=1.4, measured=True)
    assert disk._choice(ways, [0.0, 0.0, 0.0]) == DIRECT


def test_the_limit_is_that_of_the_fastest_way(pack: Pack, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk.limit(pack) > 0
    assert not store.exists()
    monkeypatch.setattr(disk, "_speeds", lambda pack: {DIRECT: 1.0, DEFAULT: 1.05})
    assert disk.limit(pack) == 1.05


def test_a_failing_disk_has_no_limit_but_one_sentence(pack: Pack) -> None:
    for layer in pack.manifest.layers:
        os.truncate(pack.path / layer.file, 0)
    with pytest.raises(StorageError, match="cannot be read; check the disk"):
        disk.limit(pack)


def test_whole_records_are_read_at_their_addresses(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[int, int]] = set()
    pool = disk._native.ReadPool

    class Watched:
        def __init__(self, depth: int) -> None:
            self._pool = pool(depth)
            self.next, self.close = self._pool.next, self._pool.close

        def submit(self, index: int, descriptor: int, offset: int, places: list[np.ndarray], **options: object) -> None:
            seen.add((offset, sum(map(len, places))))
            self._pool.submit(index, descriptor, offset, places, **options)

    monkeypatch.setattr(disk._native, "ReadPool", Watched)
    disk.limit(pack)
    assert seen == {(a.offset, a.size) for a in (pack.address(i, e) for i in range(2) for e in range(9))}


@pytest.mark.parametrize("tuning", [DEFAULT, DIRECT, replace(DIRECT, split=3, depth=2), replace(DEFAULT, split=4)])
def test_records_are_the_same_however_they_are_read(pack: Pack, tuning: Tuning) -> None:
    stream = ExpertStream(pack, 5, tuning=tuning)
    for layer in range(2):
        for expert, record in stream.records(layer, range(9)):
            assert np.array_equal(record, pack.read_record(layer, expert))
    stream.close()


@pytest.mark.parametrize("refusal", ["open", "read"])
def test_where_direct_reads_are_refused_they_are_buffered(
    pack: Pack, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = {"open": "open", "read": "preadv"}[refusal]
    original = getattr(os, function)

    def refuse(*arguments: object) -> object:
        if function == "open" and not int(str(arguments[1])) & os.O_DIRECT:
            return original(*arguments)
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(files.os, function, refuse)
    opened = LayerFiles(pack, "direct")
    assert opened.access == "buffered"
    assert opened.descriptor(1) == pack.address(1, 0).fd
    found = disk.measure(pack)
    assert found.access == "buffered"
    assert found.measured


def test_a_file_that_was_swapped_is_not_read(pack: Pack) -> None:
    file = pack.path / pack.manifest.layers[1].file
    replace_file(file, file.read_bytes())
    with pytest.raises(StorageError, match=r"layer_01\.bin was replaced while it was in use"):
        LayerFiles(pack, "direct")
    file.unlink()
    with pytest.raises(StorageError, match=r"layer_01\.bin cannot be opened again: No such file"):
        LayerFiles(pack, "direct")


def test_no_descriptor_is_lost(pack: Pack) -> None:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("this system does not list open files there")
    before = len(list(folder.iterdir()))
    for access in ("direct", "buffered"):
        LayerFiles(pack, access).close()
    disk.measure(pack)
    assert len(list(folder.iterdir())) == before
