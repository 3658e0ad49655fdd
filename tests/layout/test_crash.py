"""Crashes at every system call of a small build, then the same command again. Covers FORMAT.md W1 and W2."""

import fcntl
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from failing_system import Crash, failing_system
from tinypack import Content, build, tiny_plan, tree, write_layer, write_missing

from moepack.layout.atomic import AtomicFile
from moepack.layout.journal import JOURNAL_FILE
from moepack.layout.lock import LockedDirectory
from moepack.layout.plan import PackPlan
from moepack.layout.reader import Pack
from moepack.layout.writer import PackWriter
from moepack.manifests.errors import StorageError, UsageError
from moepack.manifests.progress import Silent
from moepack.manifests.verify import verify


def crashed_build(target: Path, plan: PackPlan, crash_at: int) -> bool:
    """Build until the crash; whether there was one."""
    with failing_system(target.with_name("stash"), crash_at):
        try:
            build(target, plan)
        except Crash:
            return True
    return False


@pytest.fixture
def plan(tmp_path: Path) -> PackPlan:
    return tiny_plan(tmp_path)


@pytest.fixture
def expected(tmp_path: Path, plan: PackPlan) -> dict[str, bytes]:
    build(tmp_path / "undisturbed", plan)
    return tree(tmp_path / "undisturbed")


def calls_of_a_build(folder: Path, plan: PackPlan) -> int:
    with failing_system(folder / "stash") as system:
        build(folder / "counted", plan)
    return system.calls


def assert_whole_or_absent(target: Path) -> None:
    if target.exists():
        assert verify(target, threads=1, progress=Silent()).ok


def test_a_crash_at_any_call_leaves_no_half_pack_and_resumes_to_the_same_bytes(
    tmp_path: Path, plan: PackPlan, expected: dict[str, bytes]
) -> None:
    """W1 and, for interruptions, W2"""
    calls = calls_of_a_build(tmp_path, plan)
    assert calls > 60
    for crash_at in range(1, calls + 1):
        target = tmp_path / f"crash{crash_at}"
        assert crashed_build(target, plan, crash_at)
        assert_whole_or_absent(target)
        if not target.exists():
            build(target, plan)
        assert tree(target) == expected
        assert not target.with_name(target.name + ".partial").exists()


def test_crashes_during_resumption_are_no_different(tmp_path: Path, plan: PackPlan, expected: dict[str, bytes]) -> None:
    chance, calls = random.Random(1), calls_of_a_build(tmp_path, plan)
    for round_ in range(12):
        target = tmp_path / f"round{round_}"
        while not target.exists():
            crashed_build(target, plan, chance.randrange(1, calls))
            assert_whole_or_absent(target)
        assert tree(target) == expected


def test_a_pack_that_was_reported_survives_a_loss_of_power(
    tmp_path: Path, plan: PackPlan, expected: dict[str, bytes]
) -> None:
    with failing_system(tmp_path / "stash") as system:
        build(tmp_path / "pack", plan)
        system.lose_power()
    assert tree(tmp_path / "pack") == expected


def test_a_finished_unit_survives_a_loss_of_power(tmp_path: Path, plan: PackPlan) -> None:
    with failing_system(tmp_path / "stash") as system:
        with PackWriter.open(tmp_path / "pack", plan) as writer:
            write_layer(writer, Content(plan), 1)
        system.lose_power()
    with PackWriter.open(tmp_path / "pack", plan) as writer:
        assert writer.missing_layers() == [0]


def test_a_file_that_the_system_cut_short_is_not_published(tmp_path: Path) -> None:
    failure = pytest.raises(StorageError, match="the system stored 99 of 100 bytes")
    with failure, AtomicFile(tmp_path / "file", 100) as file:
        file.write(b"x" * 100)
        os.truncate(tmp_path / "file.tmp", 99)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("remade", [False, True])
def test_a_directory_that_its_owner_has_just_finished_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remade: bool
) -> None:
    partial, lock = tmp_path / "pack.partial", fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        partial.rename(tmp_path / "pack")
        if remade:
            partial.mkdir()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(StorageError, match=r"another moe-pack has just finished .*pack\.partial"):
        LockedDirectory(partial)


def test_a_target_that_appears_while_the_lock_is_taken_is_left_alone(
    tmp_path: Path, plan: PackPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        (tmp_path / "pack").mkdir()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UsageError, match="pack exists; remove it or choose another output"):
        PackWriter.open(tmp_path / "pack", plan)
    assert list((tmp_path / "pack.partial").iterdir()) == []


def test_a_finished_unit_is_not_made_again(tmp_path: Path, plan: PackPlan) -> None:
    target = tmp_path / "pack"
    with PackWriter.open(target, plan) as writer:
        write_layer(writer, Content(plan), 1)
    with PackWriter.open(target, plan) as writer:
        assert writer.missing_layers() == [0]
        assert writer.trunk_missing
        write_missing(writer, Content(plan))
    with Pack.open(target) as pack:
        assert (pack.read_record(1, 2) == Content(plan).record(1, 2)).all()


def damage(path: Path) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_finished_unit_counts_only_after_hashing_it_again(
    tmp_path: Path, plan: PackPlan, expected: dict[str, bytes]
) -> None:
    target, partial = tmp_path / "pack", tmp_path / "pack.partial"
    with PackWriter.open(target, plan) as writer:
        write_layer(writer, Content(plan), 0)
        write_layer(writer, Content(plan), 1)
        with writer.trunk() as sink:
            for spec in plan.trunk:
                sink.write_blocks(spec.name, [Content(plan).tensor(spec)])
    damage(partial / "experts/layer_00.bin")
    damage(partial / "trunk.safetensors")
    with PackWriter.open(target, plan) as writer:
        assert writer.missing_layers() == [0]
        assert writer.trunk_missing
        write_missing(writer, Content(plan))
    assert tree(target) == expected


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: os.truncate(path, 100)])
def test_a_finished_unit_that_is_gone_or_short_is_made_again(
    tmp_path: Path, plan: PackPlan, expected: dict[str, bytes], change: Callable[[Path], None]
) -> None:
    target = tmp_path / "pack"
    with PackWriter.open(target, plan) as writer:
        write_layer(writer, Content(plan), 0)
    layer = tmp_path / "pack.partial/experts/layer_00.bin"
    layer.chmod(0o644)
    change(layer)
    build(target, plan)
    assert tree(target) == expected


def test_a_torn_or_damaged_journal_line_claims_nothing(
    tmp_path: Path, plan: PackPlan, expected: dict[str, bytes]
) -> None:
    target, journal = tmp_path / "pack", tmp_path / "pack.partial" / JOURNAL_FILE
    with PackWriter.open(target, plan) as writer:
        write_layer(writer, Content(plan), 0)
        write_layer(writer, Content(plan), 1)
    content = journal.read_bytes()
    journal.write_bytes(content.replace(b'"index":0', b'"index":x')[:-30])
    with PackWriter.open(target, plan) as writer:
        assert writer.missing_layers() == [0, 1]
        write_missing(writer, Content(plan))
    assert tree(target) == expected


def test_a_journal_goes_on_cleanly_after_a_torn_line(tmp_path: Path, plan: PackPlan) -> None:
    target, journal = tmp_path / "pack", tmp_path / "pack.partial" / JOURNAL_FILE
    with PackWriter.open(target, plan) as writer:
        write_layer(writer, Content(plan), 1)
    with journal.open("ab") as file:
        file.write(b'{"type":"lay')
    with PackWriter.open(target, plan) as writer:
        write_layer(writer, Content(plan), 0)
    with PackWriter.open(target, plan) as writer:
        assert writer.missing_layers() == []
    assert b"lay{" not in journal.read_bytes()


def test_what_an_earlier_run_left_unfinished_does_not_get_into_the_pack(
    tmp_path: Path, plan: PackPlan, expected: dict[str, bytes]
) -> None:
    target, partial = tmp_path / "pack", tmp_path / "pack.partial"
    with PackWriter.open(target, plan) as writer:
        write_layer(writer, Content(plan), 0)
    for stray in ("manifest.json", "model.bin.tmp", "experts/layer_07.bin", "experts/layer_01.bin"):
        (partial / stray).write_text("stray")
    with PackWriter.open(target, plan) as writer:
        assert writer.missing_layers() == [1]
        assert tree(partial).keys() == {JOURNAL_FILE, "experts/layer_00.bin"}
        write_missing(writer, Content(plan))
    assert tree(target) == expected


def full_disk(fails_at: int) -> Callable[..., int]:
    written = 0
    write = os.write

    def wrapper(descriptor: int, data: memoryview) -> int:
        nonlocal written
        if written >= fails_at:
            raise OSError(28, "No space left on device")
        count = write(descriptor, data[: fails_at - written])
        written += count
        return count

    return wrapper


@pytest.mark.parametrize("room", [0, 10, 3_000, 30_000, 50_000, 80_000, 99_000, 100_500, 103_000])
def test_a_full_disk_is_a_sentence_and_resumable(
    tmp_path: Path, plan: PackPlan, expected: dict[str, bytes], room: int
) -> None:
    target = tmp_path / "pack"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "write", full_disk(room))
        with pytest.raises(StorageError, match=r"No space left on device.* free, .* missing; make room .* to resume"):
            build(target, plan)
    assert not target.exists()
    assert not list(tmp_path.rglob("*.tmp"))
    build(target, plan)
    assert tree(target) == expected


def test_a_file_size_limit_is_a_sentence_too(tmp_path: Path, plan: PackPlan, expected: dict[str, bytes]) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"layer_00.bin .* \(File too large\): .* 9152 bytes of it"):
            build(tmp_path / "pack", plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    build(tmp_path / "pack", plan)
    assert tree(tmp_path / "pack") == expected


@pytest.mark.parametrize("call", ["fsync", "rename", "fchmod"])
def test_an_io_error_publishes_nothing(tmp_path: Path, plan: PackPlan, call: str) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    with pytest.MonkeyPatch.context() as monkeypatch, PackWriter.open(tmp_path / "pack", plan) as writer:
        monkeypatch.setattr(os, call, broken)
        with pytest.raises(StorageError, match=r"layer_00.bin cannot be written: Input/output error; run the same"):
            write_layer(writer, Content(plan), 0)
    assert not (tmp_path / "pack.partial/experts/layer_00.bin").exists()


def test_another_copy_of_the_checkpoint_gives_the_same_bytes(tmp_path: Path, expected: dict[str, bytes]) -> None:
    """W2"""
    (tmp_path / "elsewhere").mkdir()
    build(tmp_path / "pack", tiny_plan(tmp_path / "elsewhere"))
    assert tree(tmp_path / "pack") == expected


def test_work_from_other_weights_is_not_mixed_in(tmp_path: Path, plan: PackPlan) -> None:
    target = tmp_path / "pack"
    with PackWriter.open(target, plan, fingerprint="one") as writer:
        write_layer(writer, Content(plan), 0)
    for other in ("two", ""):
        with pytest.raises(UsageError, match=r"pack\.partial was begun from other weights; remove it or choose"):
            PackWriter.open(target, plan, fingerprint=other)
    with PackWriter.open(target, plan, fingerprint="one") as writer:
        assert writer.missing_layers() == [1]


def crashed_before_the_last_rename(target: Path, plan: PackPlan) -> None:
    def rename(source: Any, *args: Any) -> None:
        if Path(source).suffix == ".partial":
            raise Crash
        real(source, *args)

    real = os.rename
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(Crash):
            build(target, plan, fingerprint="one")


def test_a_pack_that_lacks_only_its_name_knows_its_weights(
    tmp_path: Path, plan: PackPlan, expected: dict[str, bytes]
) -> None:
    target = tmp_path / "pack"
    crashed_before_the_last_rename(target, plan)
    assert tree(tmp_path / "pack.partial") == expected
    with pytest.raises(UsageError, match=r"begun from other weights"):
        PackWriter.open(target, plan, fingerprint="two")
    with PackWriter.open(target, plan, fingerprint="one") as writer:
        assert writer.missing_layers() == []
        assert not writer.trunk_missing
        writer.commit()
    assert tree(target) == expected
    assert not list(tmp_path.glob("pack.*"))


def test_a_journal_left_beside_a_finished_pack_is_forgotten(
    tmp_path: Path, plan: PackPlan, expected: dict[str, bytes]
) -> None:
    (tmp_path / "pack.partial.journal.jsonl").write_text('{"type":"begun","identity":"x"}\n')
    build(tmp_path / "pack", plan)
    assert tree(tmp_path / "pack") == expected
    assert not list(tmp_path.glob("pack.*"))


def with_journal_line(target: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change what the journal says about layer 1."""
    journal = target.with_name("pack.partial") / JOURNAL_FILE
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    edit(next(line for line in lines if line.get("index") == 1))
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    "edit",
    [
        lambda line: line.update(index=7),
        lambda line: line.update(index=-1),
        lambda line: line.update(records="ab" * 32),
        lambda line: line["components"].update({"up.scales": "ab" * 32}),
        lambda line: line["components"].pop("up.scales"),
        lambda line: line["components"].update(other="ab" * 32),
        lambda line: line.update(components={}),
    ],
)
def test_a_journal_is_believed_in_nothing(
    tmp_path: Path, plan: PackPlan, expected: dict[str, bytes], edit: Callable[[dict[str, Any]], Any]
) -> None:
    target = tmp_path / "pack"
    with PackWriter.open(target, plan) as writer:
        write_layer(writer, Content(plan), 0)
        write_layer(writer, Content(plan), 1)
    with_journal_line(target, edit)
    with PackWriter.open(target, plan, jobs=1) as writer:
        assert writer.missing_layers() == [1]
        write_missing(writer, Content(plan))
    assert tree(target) == expected


def test_a_layer_behind_a_link_is_made_again(tmp_path: Path, plan: PackPlan, expected: dict[str, bytes]) -> None:
    with PackWriter.open(tmp_path / "pack", plan) as writer:
        write_layer(writer, Content(plan), 0)
    layer = tmp_path / "pack.partial/experts/layer_00.bin"
    layer.rename(tmp_path / "elsewhere.bin")
    layer.symlink_to(tmp_path / "elsewhere.bin")
    build(tmp_path / "pack", plan)
    assert tree(tmp_path / "pack") == expected
