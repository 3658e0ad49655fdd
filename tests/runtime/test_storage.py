"""What the storage delivers: whole records, read past the page cache where that is possible."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tinypack import build, tiny_model, tiny_plan

from moepack.layout.reader import Pack
from moepack.manifests.errors import StorageError
from moepack.runtime import storage
from moepack.runtime.storage import random_read_rate


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    folder = tmp_path_factory.mktemp("random")
    build(folder / "pack", tiny_plan(folder, tiny_model(layers=2, experts=8)))
    with Pack.open(folder / "pack") as opened:
        yield opened


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SECONDS", 0.01)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(offset, bytes) of every read from here on."""
    seen: list[tuple[int, int]] = []
    preadv = os.preadv

    def watched(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        seen.append((offset, len(buffers[0])))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr("os.preadv", watched)
    return seen


def test_reads_are_whole_records_at_their_addresses(pack: Pack, reads: list[tuple[int, int]]) -> None:
    assert random_read_rate(pack) > 0
    layers, experts = range(pack.model.num_layers), range(pack.model.num_experts)
    records = {(a.offset, a.size) for a in (pack.address(i, e) for i in layers for e in experts)}
    assert set(reads) <= records
    assert len(set(reads)) > 1


def test_a_filesystem_without_direct_access_is_read_through_the_page_cache(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, dropped = os.open, []

    def refuse(path: Path, flags: int) -> int:
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags)

    monkeypatch.setattr("os.posix_fadvise", lambda *arguments: dropped.append(arguments), raising=False)
    monkeypatch.setattr("os.open", refuse)
    assert random_read_rate(pack) > 0
    assert bool(dropped) == hasattr(os, "O_DIRECT")


@pytest.mark.parametrize(("fails", "says"), [(True, "cannot be read"), (False, "ends after")])
def test_a_failing_disk_is_one_sentence(pack: Pack, monkeypatch: pytest.MonkeyPatch, fails: bool, says: str) -> None:
    def bad(*_: object) -> int:
        if fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return 1

    monkeypatch.setattr("os.preadv", bad)
    with pytest.raises(StorageError, match=says):
        random_read_rate(pack)
