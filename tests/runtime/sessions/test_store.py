"""States on disk: found again after a restart, never believed when damaged, bounded, one process at a time."""

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from moepack.layout.atomic import AtomicFile
from moepack.manifests.errors import StorageError
from moepack.runtime.sessions import store as stores
from moepack.runtime.sessions.prefixes import Prefixes
from moepack.runtime.sessions.snapshot import Snapshot
from moepack.runtime.sessions.store import ROOT, Store, key_of

BIG = 10**9
DEEP = 3000
ID = b"a pack, K = 4"


def snapshot(first: int, last: int, seed: int = 0) -> Snapshot:
    random = np.random.default_rng(seed)
    rows = [random.standard_normal((last - first, 8), np.float32) for _ in range(2)]
    state = [random.standard_normal(shape).astype(np.float32) for shape in ((3, 10), (2, 4, 4))]
    return Snapshot(first, last, ((rows[0], rows[1]), (state[0], state[1])))


def same(one: Snapshot, other: Snapshot) -> bool:
    pairs = [
        (a, b) for left, right in zip(one.layers, other.layers, strict=True) for a, b in zip(left, right, strict=True)
    ]
    return (one.first, one.last) == (other.first, other.last) and all(np.array_equal(a, b) for a, b in pairs)


def filled(folder: Path, limit: int = BIG, memory: int = BIG) -> tuple[Store, Prefixes]:
    """A store with the prompts (1, 2, 3), (1, 2, 3, 4, 5) and (9,)."""
    store = Store(folder, limit)
    prefixes = Prefixes(memory, ID, store)
    node = prefixes.add(prefixes.root, (1, 2, 3), snapshot(0, 3, 1))
    prefixes.add(node, (4, 5), snapshot(3, 5, 2))
    prefixes.add(prefixes.root, (9,), snapshot(0, 1, 3))
    store.drain()
    return store, prefixes


def reopened(folder: Path, identity: bytes = ID, memory: int = BIG, limit: int = BIG) -> tuple[Store, Prefixes]:
    store = Store(folder, limit)
    return store, Prefixes(memory, identity, store)


def test_a_restart_finds_what_was_kept(tmp_path: Path) -> None:
    filled(tmp_path)[0].close()
    store, prefixes = reopened(tmp_path)
    known = prefixes.find((1, 2, 3, 4, 5, 6))
    assert [same(*both) for both in zip(known.snapshots, (snapshot(0, 3, 1), snapshot(3, 5, 2)), strict=True)] == [
        True
    ] * 2
    assert prefixes.find((9, 1)).node.position == 1
    assert prefixes.size == sum(each.size for each in (*known.snapshots, *prefixes.find((9, 1)).snapshots))
    store.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_was_asked_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "states" / "pack"
    filled(folder)[0].close()
    assert {mode(file) for file in folder.iterdir()} == {0o600}
    assert [mode(folder), mode(folder.parent)] == [0o700] * 2


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    filled(tmp_path)[0].close()
    assert mode(tmp_path) == 0o750


def test_another_identity_sees_nothing(tmp_path: Path) -> None:
    filled(tmp_path)[0].close()
    store, prefixes = reopened(tmp_path, b"another pack")
    assert prefixes.find((1, 2, 3, 4)).node is prefixes.root
    store.close()


@pytest.mark.parametrize("at", range(0, 800, 37))
def test_a_damaged_file_is_never_continued_from(tmp_path: Path, at: int) -> None:
    store, _ = filled(tmp_path)
    file = store.kept[key_of(ID, (1, 2, 3))].path
    store.close()
    content = bytearray(file.read_bytes())
    content[at % len(content)] ^= 16
    file.chmod(0o644)
    file.write_bytes(content)
    store, prefixes = reopened(tmp_path)
    assert prefixes.find((1, 2, 3, 4, 5, 6)).node is prefixes.root
    assert prefixes.find((9, 1)).node.position == 1
    store.close()


def test_a_file_that_is_gone_is_never_continued_from(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    store.kept[key_of(ID, (1, 2, 3))].path.unlink()
    fresh = Prefixes(BIG, ID, store)
    assert fresh.find((1, 2, 3, 4, 5, 6)).node is fresh.root
    store.close()
    store, prefixes = reopened(tmp_path)
    assert prefixes.find((1, 2, 3, 4, 5, 6)).node is prefixes.root
    store.close()


def test_the_disk_is_bounded_and_the_oldest_goes_first(tmp_path: Path) -> None:
    store, prefixes = filled(tmp_path)
    limit = store.size
    store.close()
    for order, key in enumerate([(9,), (1, 2, 3), (1, 2, 3, 4, 5)]):
        store, _ = reopened(tmp_path)
        os.utime(store.kept[key_of(ID, key)].path, (order, order))
        store.close()
    store, prefixes = reopened(tmp_path, limit=limit)
    prefixes.add(prefixes.root, (7,), snapshot(0, 1, 4))
    store.drain()
    assert store.size <= limit
    assert key_of(ID, (9,)) not in store.kept
    assert prefixes.find((9, 1)).node is prefixes.root
    assert prefixes.find((1, 2, 3, 4, 5, 6)).node.position == 5
    assert prefixes.find((7, 1)).node.position == 1
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == store.size
    store.close()


def test_a_folder_is_bounded_from_its_opening(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    for order, key in enumerate([(1, 2, 3), (1, 2, 3, 4, 5), (9,)]):
        os.utime(store.kept[key_of(ID, key)].path, (order, order))
    sizes = {key: kept.size for key, kept in store.kept.items()}
    store.close()
    store, prefixes = reopened(tmp_path, limit=sum(sizes.values()) - 1)
    assert store.size == sum(file.stat().st_size for file in tmp_path.iterdir()) <= store.limit
    assert set(sizes) - set(store.kept) == {key_of(ID, (1, 2, 3, 4, 5))}  # the oldest that nothing continues
    assert prefixes.find((1, 2, 3, 4)).node.position == 3
    assert prefixes.find((9, 1)).node.position == 1
    store.close()
    Store(tmp_path, 0).close()
    assert not list(tmp_path.iterdir())


def test_what_memory_lets_go_of_the_disk_still_has(tmp_path: Path) -> None:
    small = snapshot(0, 3).size
    store, prefixes = filled(tmp_path, memory=small)
    assert prefixes.size <= small
    assert prefixes.find((1, 2, 3, 4, 5, 6)).node.position == 5
    assert prefixes.find((9, 9)).node.position == 1
    assert prefixes.size <= small
    store.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    with pytest.raises(StorageError, match="another moe-run keeps its state in"):
        Store(tmp_path, BIG)
    store.close()
    Store(tmp_path, BIG).close()


def test_what_a_crash_left_is_swept(tmp_path: Path) -> None:
    filled(tmp_path)[0].close()
    (tmp_path / "x.safetensors.tmp").write_bytes(b"half")
    (tmp_path / "somebody's.txt").write_text("not ours")
    store, prefixes = reopened(tmp_path)
    assert not (tmp_path / "x.safetensors.tmp").exists()
    assert (tmp_path / "somebody's.txt").exists()
    assert prefixes.find((9, 1)).node.position == 1
    store.close()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="give another --state-dir"):
        Store(tmp_path / "file" / "states", BIG)


@contextmanager
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is written before the block ends."""
    goes_on = threading.Event()

    class Waiting(AtomicFile):
        def __enter__(self) -> "Waiting":
            goes_on.wait()
            super().__enter__()
            return self

    monkeypatch.setattr(stores, "AtomicFile", Waiting)
    try:
        yield
    finally:
        goes_on.set()


def test_what_waits_for_the_disk_can_be_continued_and_is_written_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, BIG)
    prefixes = Prefixes(snapshot(0, 3).size, ID, store)
    with slow_disk(monkeypatch):
        node = prefixes.add(prefixes.root, (1, 2, 3), snapshot(0, 3, 1))
        prefixes.add(prefixes.root, (9, 9, 9), snapshot(0, 3, 2))  # memory lets go of the first
        assert node.snapshot is None
        found = prefixes.find((1, 2, 3, 4)).snapshots
        assert len(found) == 1
        assert same(found[0], snapshot(0, 3, 1))
        assert not list(tmp_path.iterdir())
    store.close()
    store, prefixes = reopened(tmp_path)
    assert same(prefixes.find((1, 2, 3, 4)).snapshots[0], snapshot(0, 3, 1))
    assert same(prefixes.find((9, 9, 9, 4)).snapshots[0], snapshot(0, 3, 2))
    store.close()


def test_what_comes_faster_than_the_disk_takes_it_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = snapshot(0, 1).size
    store = Store(tmp_path, BIG, queue=2 * size)
    prefixes = Prefixes(BIG, ID, store)
    with slow_disk(monkeypatch):
        for first in range(5):
            prefixes.add(prefixes.root, (first,), snapshot(0, 1, first))
        assert [prefixes.find((first, 9)).node.position for first in range(5)] == [1] * 5  # memory has them
    store.close()
    store, prefixes = reopened(tmp_path)
    assert [prefixes.find((first, 9)).node.position for first in range(5)] == [1, 1, 0, 0, 0]
    store.close()


def test_what_is_forgotten_while_it_waits_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, BIG)
    with slow_disk(monkeypatch):
        for first in (1, 2):
            store.save(key_of(ID, (first,)), b"", (first,), snapshot(0, 1, first))
            store.forget(key_of(ID, (first,)))
    store.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_once_and_nothing_is_believed_to_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(AtomicFile):
        def __enter__(self) -> "Full":
            raise StorageError("no space left")

    store = Store(tmp_path, BIG)
    prefixes = Prefixes(snapshot(0, 3).size, ID, store)
    with monkeypatch.context() as patch:
        patch.setattr(stores, "AtomicFile", Full)
        prefixes.add(prefixes.root, (1, 2, 3), snapshot(0, 3, 1))
        prefixes.add(prefixes.root, (9, 9, 9), snapshot(0, 3, 2))
        store.drain()
    assert [record.getMessage() for record in caplog.records] == ["prompts are not kept on disk for now: no space left"]
    assert not store.kept
    assert prefixes.find((1, 2, 3, 4)).node is prefixes.root  # memory had let go of it, for the disk
    assert prefixes.find((9, 9, 9, 4)).node.position == 3
    prefixes.add(prefixes.root, (5,), snapshot(0, 1, 3))
    store.close()
    assert list(store.kept) == [key_of(ID, (5,))]


def test_a_conversation_of_any_length_is_found_again_and_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    store, parent = Store(tmp_path, BIG), ROOT
    for token in range(DEEP):
        key = key_of(ID, range(token + 1))
        assert store.save(key, parent, (token,), Snapshot(token, token + 1, ()))
        parent = key
    store.close()
    store, prefixes = reopened(tmp_path)
    known = prefixes.find((*range(DEEP), 1))
    assert (known.node.position, len(known.snapshots)) == (DEEP, DEEP)
    assert prefixes.add(known.node, (DEEP,), Snapshot(DEEP, DEEP + 1, ())) is not known.node
    store.forget(known.node.path[1].key)
    assert list(store.kept) == [known.node.path[0].key]
    store.close()
    assert len(list(tmp_path.iterdir())) == 1


def as_directory(file: Path) -> None:
    file.unlink()
    (file / "something").mkdir(parents=True)


def test_what_cannot_be_removed_is_told_once_and_never_continued_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, _ = filled(tmp_path)
    for kept in store.kept.values():
        as_directory(kept.path)
    fresh = Prefixes(BIG, ID, store)
    assert fresh.find((1, 2, 3, 4, 5, 6)).node is fresh.root
    assert fresh.find((9, 1)).node is fresh.root
    assert not store.kept
    assert ["cannot be removed" in record.getMessage() for record in caplog.records] == [True]
    fresh.add(fresh.root, (5,), snapshot(0, 1, 3))
    store.close()
    store, prefixes = reopened(tmp_path)
    assert prefixes.find((1, 2, 3, 4)).node is prefixes.root
    assert prefixes.find((5, 1)).node.position == 1
    store.close()


def test_a_directory_with_a_temporary_name_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path)[0].close()
    (tmp_path / "x.tmp").mkdir()
    store, prefixes = reopened(tmp_path)
    assert prefixes.find((9, 1)).node.position == 1
    assert "x.tmp cannot be removed: Is a directory" in caplog.text
    store.close()


def test_what_is_written_in_vain_and_cannot_be_removed_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, key = Store(tmp_path, BIG), key_of(ID, (1,))

    class Unwanted(AtomicFile):
        def __enter__(self) -> "Unwanted":
            store.forget(key)  # while it is written; whose thread this is waits for it
            super().__enter__()
            return self

    monkeypatch.setattr(stores, "AtomicFile", Unwanted)
    monkeypatch.setattr(stores, "remove", _refused)
    store.save(key, b"", (1,), snapshot(0, 1))
    store.drain()
    assert not store.kept
    assert "cannot be removed: Permission denied" in caplog.text
    store.close()


def _refused(_: Path) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_folder_that_cannot_be_listed_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", _refused)
        with pytest.raises(StorageError, match="Permission denied; give another --state-dir"):
            Store(tmp_path, BIG)
    Store(tmp_path, BIG).close()  # nobody has it


def test_files_that_claim_to_continue_each_other_are_forgotten(tmp_path: Path) -> None:
    one, other = key_of(ID, (1,)), key_of(ID, (2,))
    store = Store(tmp_path, BIG)
    store.save(one, other, (1,), snapshot(0, 1))
    store.save(other, one, (2,), snapshot(0, 1))
    store.drain()
    assert Prefixes(BIG, ID, store).root.children == {}
    store.forget(one)
    assert not store.kept
    store.close()


def test_a_defect_of_writing_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Defect(AtomicFile):
        def __enter__(self) -> "Defect":
            raise ValueError("a defect")

    store = Store(tmp_path, BIG)
    with monkeypatch.context() as patch:
        patch.setattr(stores, "AtomicFile", Defect)
        store.save(key_of(ID, (1,)), b"", (1,), snapshot(0, 1))
        store.drain()
    assert not store.kept
    assert "cannot be written: a defect" in caplog.text
    store.close()
