"""Mending a published pack: a crash at any moment leaves every file as it was or as it should be."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from failing_system import Crash, failing_system
from tinypack import Content, build, replace_file, seal_sums, tiny_plan, tree

from moepack.layout.lock import LockedDirectory
from moepack.layout.plan import PackPlan
from moepack.layout.repair import MARKER, PackRepair, remove_leftovers
from moepack.manifests.errors import MismatchError, StorageError, UsageError
from moepack.manifests.manifest import read_manifest

LAYER = "experts/layer_01.bin"


@pytest.fixture
def plan(tmp_path: Path) -> PackPlan:
    (tmp_path / "source").mkdir()
    return tiny_plan(tmp_path / "source")


@pytest.fixture
def good(tmp_path: Path, plan: PackPlan) -> dict[str, bytes]:
    build(tmp_path / "good", plan)
    return tree(tmp_path / "good")


def damaged(target: Path, plan: PackPlan) -> dict[str, bytes]:
    """A pack with two damaged files and one that is missing."""
    build(target, plan)
    for name in (LAYER, "trunk.safetensors"):
        content = bytearray((target / name).read_bytes())
        content[300] ^= 1
        replace_file(target / name, content)
    (target / "digests.bin").unlink()
    return tree(target)


def mend(target: Path, plan: PackPlan, good: dict[str, bytes], seed: int = 0) -> None:
    content = Content(plan, seed)
    with PackRepair.open(target, read_manifest(target), plan, ["digests.bin", "trunk.safetensors", LAYER]) as repair:
        with repair.file("digests.bin") as file:
            file.write(good["digests.bin"])
        with repair.trunk() as trunk:
            for spec in plan.trunk:
                trunk.write_blocks(spec.name, [content.tensor(spec)])
        with repair.layer(1) as layer:
            for expert in range(plan.model.num_experts):
                layer.append(content.record(1, expert))
        repair.commit()


def test_what_is_damaged_is_replaced_and_nothing_else(tmp_path: Path, plan: PackPlan, good: dict[str, bytes]) -> None:
    target = tmp_path / "pack"
    damaged(target, plan)
    kept = {name: (target / name).stat() for name in ("manifest.json", "config.json", "experts/layer_00.bin")}
    mend(target, plan, good)
    assert tree(target) == good
    assert {name: (target / name).stat().st_ino for name in kept} == {name: one.st_ino for name, one in kept.items()}
    assert {(target / name).stat().st_mode & 0o777 for name in (LAYER, "digests.bin", "trunk.safetensors")} == {0o444}
    assert not (tmp_path / "pack.repair").exists()


def test_a_damaged_file_is_never_written_to(tmp_path: Path, plan: PackPlan, good: dict[str, bytes]) -> None:
    """Whoever has it open, or a second name of it, keeps what was there."""
    target = tmp_path / "pack"
    before = damaged(target, plan)
    (tmp_path / "second").hardlink_to(target / LAYER)
    mend(target, plan, good)
    assert (tmp_path / "second").read_bytes() == before[LAYER] != good[LAYER]


def test_a_loss_of_power_at_any_call_leaves_files_as_they_were_or_as_they_should_be(
    tmp_path: Path, plan: PackPlan, good: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the failing system knows what each would have done
    crash_at, finished = 0, False
    before = damaged(tmp_path / "damaged", plan)
    while not finished:
        crash_at += 1
        target = tmp_path / f"pack{crash_at}"
        shutil.copytree(tmp_path / "damaged", target)
        with failing_system(tmp_path / "stash", crash_at), suppress(Crash):
            mend(target, plan, good)
            finished = True
        after = tree(target)
        assert after["manifest.json"] == good["manifest.json"]
        assert after.keys() <= good.keys()
        for name, content in after.items():
            assert content in (before.get(name), good[name]), f"{name} after a crash at {crash_at}"
        mend(target, plan, good)
        assert tree(target) == good
        assert not target.with_name(f"{target.name}.repair").exists()
        shutil.rmtree(target)
    assert crash_at > 30


def test_other_bytes_than_promised_change_nothing(tmp_path: Path, plan: PackPlan, good: dict[str, bytes]) -> None:
    target = tmp_path / "pack"
    before = damaged(target, plan)
    with pytest.raises(MismatchError, match=r"made again, has another digest than .* nothing was changed"):
        mend(target, plan, good, seed=1)
    assert tree(target) == before
    assert not (tmp_path / "pack.repair").exists()


EACH = [LAYER, "trunk.safetensors", "digests.bin"]


def make_one(target: Path, plan: PackPlan, good: dict[str, bytes], name: str, seed: int = 0) -> None:
    """Repair one file, with its own bytes by seed 0 only."""
    content = Content(plan, seed)
    with PackRepair.open(target, read_manifest(target), plan, [name]) as repair:
        if name == LAYER:
            with repair.layer(1) as layer:
                for expert in range(plan.model.num_experts):
                    layer.append(content.record(1, expert))
        elif name == "trunk.safetensors":
            with repair.trunk() as trunk:
                for spec in plan.trunk:
                    trunk.write_blocks(spec.name, [content.tensor(spec)])
        else:
            with repair.file(name) as file:
                file.write(good[name][::-1] if seed else good[name])
        repair.commit()


@pytest.mark.parametrize("name", EACH)
def test_each_file_must_have_its_digest(tmp_path: Path, plan: PackPlan, good: dict[str, bytes], name: str) -> None:
    target = tmp_path / "pack"
    before = damaged(target, plan)
    with pytest.raises(MismatchError, match=f"{name}, made again, has another digest than .* nothing was changed"):
        make_one(target, plan, good, name, seed=1)
    assert tree(target) == before
    make_one(target, plan, good, name)
    assert tree(target)[name] == good[name]


@pytest.mark.parametrize("name", EACH)
def test_a_list_that_gives_a_file_another_sha256_is_told(
    tmp_path: Path, plan: PackPlan, good: dict[str, bytes], name: str
) -> None:
    """Whoever sealed the pack had damage in it: no bytes are right by both digests."""
    target = tmp_path / "pack"
    build(target, plan)
    replace_file(target / name, good[name][:-1] + bytes([good[name][-1] ^ 1]))
    seal_sums(target)
    before = tree(target)
    with pytest.raises(MismatchError, match=f"{name}, made again, .*SHA256SUMS.* another SHA-256; nothing was"):
        make_one(target, plan, good, name)
    assert tree(target) == before


@pytest.mark.parametrize("name", EACH)
def test_a_file_that_the_disk_keeps_otherwise_is_told(
    tmp_path: Path, plan: PackPlan, good: dict[str, bytes], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, write = tmp_path / "pack", os.write
    before = damaged(target, plan)

    def careless(descriptor: int, data: memoryview) -> int:
        return write(descriptor, bytes(data[:-1]) + bytes([data[-1] ^ 1]))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", careless)
        with pytest.raises(StorageError, match=f"{name}, made again, reads back as other bytes; nothing was changed"):
            make_one(target, plan, good, name)
    assert tree(target) == before


@pytest.mark.parametrize("name", EACH)
def test_a_directory_in_a_files_place_is_told_before_the_work(tmp_path: Path, plan: PackPlan, name: str) -> None:
    target = tmp_path / "pack"
    build(target, plan)
    (target / name).unlink()
    (target / name).mkdir()
    with pytest.raises(UsageError, match=f"{name} is a directory, where a file belongs; remove it"):
        PackRepair.open(target, read_manifest(target), plan, ["config.json", name])
    assert not (tmp_path / "pack.repair").exists()


@pytest.mark.parametrize(("shut", "name"), [("pack", "config.json"), ("pack/experts", LAYER), (".", "config.json")])
def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(
    tmp_path: Path, plan: PackPlan, shut: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so what the system would answer others is put in its mouth."""
    target = tmp_path / "pack"
    build(target, plan)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / shut)
    with pytest.raises(StorageError, match=f"{(tmp_path / shut).name} cannot be written to"):
        PackRepair.open(target, read_manifest(target), plan, [name])
    assert not (tmp_path / "pack.repair").exists()


def test_a_pack_without_its_folder_of_layers_is_mended(tmp_path: Path, plan: PackPlan, good: dict[str, bytes]) -> None:
    target = tmp_path / "pack"
    build(target, plan)
    shutil.rmtree(target / "experts")
    make_one(target, plan, good, LAYER)
    assert (target / LAYER).read_bytes() == good[LAYER]


@pytest.mark.parametrize("call", ["fsync", "rename", "write"])
def test_a_disk_that_fails_is_a_sentence(
    tmp_path: Path, plan: PackPlan, good: dict[str, bytes], call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "pack"
    before = damaged(target, plan)

    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(f"os.{call}", broken)
        with pytest.raises(StorageError, match="Input/output error"):
            mend(target, plan, good)
    assert tree(target) == before
    mend(target, plan, good)
    assert tree(target) == good


def test_two_repairs_of_one_pack_exclude_each_other(tmp_path: Path, plan: PackPlan, good: dict[str, bytes]) -> None:
    target = tmp_path / "pack"
    damaged(target, plan)
    lock = LockedDirectory(tmp_path / "pack.repair")
    with pytest.raises(StorageError, match=r"another moe-pack is writing .*pack\.repair"):
        mend(target, plan, good)
    lock.close()
    mend(target, plan, good)
    assert tree(target) == good


@pytest.mark.parametrize(
    ("name", "marked"),
    [("thesis.txt", False), ("thesis.txt", True), ("config.json", False), ("config.json.tmp", False)],
)
def test_somebody_elses_directory_is_left_alone(
    tmp_path: Path, plan: PackPlan, good: dict[str, bytes], name: str, marked: bool
) -> None:
    """Though its files may have names that a repair's have too."""
    target, mine = tmp_path / "pack", tmp_path / "pack.repair" / name
    before = damaged(target, plan)
    mine.parent.mkdir()
    mine.write_text("mine")
    if marked:
        mine.with_name(MARKER).write_text("")
    tried: list[Callable[[], None]] = [
        lambda: mend(target, plan, good),
        lambda: remove_leftovers(target, read_manifest(target)),
    ]
    for attempt in tried:
        with pytest.raises(UsageError, match=f"{name} is not of a repair"):
            attempt()
    assert mine.read_text() == "mine"
    assert tree(target) == before


def test_layers_behind_a_link_are_not_written_through_it(
    tmp_path: Path, plan: PackPlan, good: dict[str, bytes]
) -> None:
    target = tmp_path / "pack"
    damaged(target, plan)
    (target / "experts").rename(tmp_path / "elsewhere")
    (target / "experts").symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="experts is not a directory"):
        mend(target, plan, good)
    assert tree(tmp_path / "elsewhere") == before


def test_leftovers_of_a_repair_are_removed(tmp_path: Path, plan: PackPlan) -> None:
    build(tmp_path / "pack", plan)
    (tmp_path / "pack.repair" / "experts").mkdir(parents=True)
    (tmp_path / "pack.repair" / MARKER).write_text("")
    (tmp_path / "pack.repair" / "experts" / "layer_01.bin.tmp").write_text("half")
    remove_leftovers(tmp_path / "pack", read_manifest(tmp_path / "pack"))
    remove_leftovers(tmp_path / "pack", read_manifest(tmp_path / "pack"))
    assert not (tmp_path / "pack.repair").exists()
