"""Mending a published pack: a crash at any moment leaves every file as it was or as it should be."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from failing_system import Crash, failing_system
from tinypack import Content, build, replace_file, tiny_plan, tree

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


def in_the_way(staging: Path) -> None:
    staging.mkdir()
    (staging / "thesis.txt").write_text("mine")


def test_somebody_elses_directory_is_left_alone(tmp_path: Path, plan: PackPlan, good: dict[str, bytes]) -> None:
    target = tmp_path / "pack"
    before = damaged(target, plan)
    in_the_way(tmp_path / "pack.repair")
    tried: list[Callable[[], None]] = [
        lambda: mend(target, plan, good),
        lambda: remove_leftovers(target, read_manifest(target)),
    ]
    for attempt in tried:
        with pytest.raises(UsageError, match=r"thesis.txt is not of a repair"):
            attempt()
    assert (tmp_path / "pack.repair" / "thesis.txt").read_text() == "mine"
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
