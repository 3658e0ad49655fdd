"""moe-pack lock, and build, verify and reproduce by a lock, as a user meets them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import CheckpointMaker, Variant
from packs import PLAIN
from provable import found, with_other_weights
from ran import Ran
from tinypack import tree

from moepack.convert.lock import read_lock
from moepack.convert.recipe import Coding, Override, Recipe
from moepack.convert.recipefile import written
from moepack.layout.formats import parse

MoePack = Callable[..., Ran]


@pytest.fixture
def source(make_checkpoint: CheckpointMaker) -> Path:
    return make_checkpoint(Variant())


def locked(source: Path, pack: Path | None, target: Path, moe_pack: MoePack, *options: object) -> Path:
    given = () if pack is None else ("--pack", pack)
    done = moe_pack("lock", source, "--out", target, *given, *options)
    assert done.code == 0, done.err
    return target


def test_a_lock_rebuilds_the_same_pack_elsewhere(
    checkpoint: Path, pack: Path, tmp_path: Path, moe_pack: MoePack
) -> None:
    lock = locked(checkpoint, pack, tmp_path / "lock.toml", moe_pack)
    elsewhere = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(checkpoint, elsewhere)
    assert moe_pack("build", elsewhere, tmp_path / "again", "--lock", lock).code == 0
    assert tree(tmp_path / "again") == tree(pack)
    assert moe_pack("verify", tmp_path / "again", "--lock", lock).code == 0
    assert found(moe_pack("reproduce", pack, "--source", elsewhere, "--lock", lock, "--json"))["ok"]
    assert str(tmp_path) not in lock.read_text()


def test_a_lock_of_a_recipe_with_overrides_and_a_calibration(
    source: Path, calibrated_pack: Path, whole_calibration: Path, tmp_path: Path, moe_pack: MoePack
) -> None:
    given = ("--calibration", whole_calibration)
    lock = locked(source, calibrated_pack, tmp_path / "lock.toml", moe_pack, *given)
    assert moe_pack("build", source, tmp_path / "again", "--lock", lock, *given).code == 0
    assert tree(tmp_path / "again") == tree(calibrated_pack)
    moe_pack("build", source, tmp_path / "third", "--lock", lock).refused(2, "needs a calibration")


def test_a_lock_without_a_pack_names_source_and_recipe(source: Path, tmp_path: Path, moe_pack: MoePack) -> None:
    lock = locked(source, None, tmp_path / "lock.toml", moe_pack, *PLAIN)
    assert moe_pack("build", source, tmp_path / "pack", "--lock", lock).code == 0
    moe_pack("verify", tmp_path / "pack", "--lock", lock).refused(2, "names no pack; lock again with --pack")


def test_a_changed_source_is_refused(checkpoint: Path, pack: Path, tmp_path: Path, moe_pack: MoePack) -> None:
    lock = locked(checkpoint, pack, tmp_path / "lock.toml", moe_pack)
    template = (checkpoint / "chat_template.jinja").read_text()
    (checkpoint / "chat_template.jinja").write_text("another")
    again = tmp_path / "again"
    moe_pack("build", checkpoint, again, "--lock", lock).refused(1, lock, "chat_template.jinja")
    (checkpoint / "chat_template.jinja").write_text(template)
    with_other_weights(checkpoint)
    moe_pack("build", checkpoint, again, "--lock", lock).refused(1, lock)
    moe_pack("reproduce", pack, "--source", checkpoint, "--lock", lock).refused(1, lock)
    assert not list(tmp_path.glob("again*"))


def test_a_lock_of_a_pack_from_other_weights_is_not_written(checkpoint: Path, pack: Path, moe_pack: MoePack) -> None:
    with_other_weights(checkpoint)
    out = pack.with_name("lock.toml")
    moe_pack("lock", checkpoint, "--pack", pack, "--out", out).refused(1, "1 of 32 experts differ")
    assert not out.exists()


def test_a_lock_with_source_digests_sees_every_weight(
    checkpoint: Path, pack: Path, tmp_path: Path, moe_pack: MoePack
) -> None:
    asked = ("lock", checkpoint, "--pack", pack, "--source-digests", "--out")
    assert moe_pack(*asked, tmp_path / "lock.toml").code == 0
    with (checkpoint / "model.safetensors").open("r+b") as file:  # in the trunk, of which a lock makes nothing again
        file.seek(-1, 2)
        last = file.read()
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    moe_pack(*asked, tmp_path / "other.toml").refused(1, "model.safetensors differ")
    assert not (tmp_path / "other.toml").exists()
    moe_pack("lock", checkpoint, "--source-digests", "--out", tmp_path / "other.toml").refused(2, "--pack")


def test_another_pack_than_the_locked_one_is_told(source: Path, pack: Path, tmp_path: Path, moe_pack: MoePack) -> None:
    lock = locked(source, pack, tmp_path / "lock.toml", moe_pack)
    other = tmp_path / "other"
    assert moe_pack("build", source, other, "--expert-format", "book2-g8").code == 0
    for command in (("verify", other), ("reproduce", other, "--source", source)):
        moe_pack(*command, "--lock", lock).refused(1, other, lock)


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("", "is not a lock"),
        ("version = 2\n", "is not a lock"),
        ("version = ", "lock.toml"),
        ("a = " + "[" * 5000, "lock.toml"),
        ("\x00", "lock.toml"),
    ],
)
def test_what_is_no_lock_is_refused(text: str, culprit: str, source: Path, tmp_path: Path, moe_pack: MoePack) -> None:
    (tmp_path / "lock.toml").write_text(text)
    moe_pack("build", source, tmp_path / "pack", "--lock", tmp_path / "lock.toml").refused(2, culprit)
    assert not list(tmp_path.glob("pack*"))


def test_locks_and_options_that_contradict_each_other(
    source: Path, pack: Path, tmp_path: Path, moe_pack: MoePack
) -> None:
    lock = locked(source, pack, tmp_path / "lock.toml", moe_pack)
    again = tmp_path / "again"
    moe_pack("build", source, again, "--lock", lock, "--bits", 3).refused(2, "--bits and --lock")
    moe_pack("build", source, again, "--lock", lock, "--trunk", "bf16").refused(2, "a lock says what --trunk says")
    moe_pack("lock", source, "--pack", pack, "--out", tmp_path / "l.toml", *PLAIN).refused(2, "--pack says")
    moe_pack("lock", source, "--out", lock, *PLAIN).refused(2, lock, "exists")
    moe_pack("lock", source, "--out", tmp_path / "lock.json", *PLAIN).refused(2, "lock.json", ".toml")
    moe_pack("build", "--lock", lock, again).refused(2, lock, "names no repository")
    moe_pack("build", source).refused(2, "moe-pack build SRC OUT")
    assert not (tmp_path / "lock.json").exists()


def test_a_lock_of_other_arithmetic_is_refused_before_anything_is_made(
    source: Path, pack: Path, tmp_path: Path, moe_pack: MoePack
) -> None:
    lock = locked(source, pack, tmp_path / "lock.toml", moe_pack)
    other = tmp_path / "other.toml"
    other.write_text(lock.read_text().replace("\narithmetic = ", "\narithmetic = 9", 1))
    moe_pack("build", source, tmp_path / "again", "--lock", other).refused(5, other, "arithmetic 9")
    moe_pack("reproduce", pack, "--source", source, "--lock", other).refused(5, other, "arithmetic 9")
    assert not list(tmp_path.glob("again*"))


def test_a_lock_fetches_from_a_repository_only(source: Path, tmp_path: Path, moe_pack: MoePack) -> None:
    lock = locked(source, None, tmp_path / "lock.toml", moe_pack)
    other = tmp_path / "other.toml"
    other.write_text(lock.read_text().replace("\n[source]\n", f"\n[source]\nrepository = {json.dumps(str(source))}\n"))
    moe_pack("build", "--lock", other, tmp_path / "pack").refused(2, other, "names no repository")


def test_every_recipe_survives_its_lock(source: Path, tmp_path: Path, moe_pack: MoePack) -> None:
    down = Override((0, 2, 3), ("down",), Coding(parse("affine4-g64"), "minmax"))
    recipe = Recipe(Coding(parse("affine3-g64")), "affine8-g64", (down, Override(None, ("gate", "up"), Coding())))
    (tmp_path / "recipe.json").write_text(json.dumps(written(recipe)))
    lock = locked(source, None, tmp_path / "lock.toml", moe_pack, "--recipe", tmp_path / "recipe.json")
    assert read_lock(lock).recipe == recipe
