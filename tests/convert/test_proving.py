"""reproduce, repair, diff, lock, scrub and verify's modes as a user meets them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from checkpoints import CheckpointMaker, Shape, Variant
from provable import LAYER, flip, found, stride, with_another_norm, with_other_weights
from ran import Ran
from tinypack import edit_manifest, replace_file, seal_sums, tree

from moepack.convert import proving
from moepack.layout.repair import MARKER
from moepack.manifests.errors import StorageError
from moepack.manifests.manifest import pack_digest

MoePack = Callable[..., Ran]


@pytest.fixture
def source(make_checkpoint: CheckpointMaker) -> Path:
    return make_checkpoint(Variant())


# reproduce


def test_a_pack_is_reproduced(source: Path, pack: Path, moe_pack: MoePack) -> None:
    told = found(moe_pack("reproduce", pack, "--source", source, "--sample", "100%", "--trunk", "--json"))
    assert told["ok"]
    assert told["findings"] == told["source"] == told["files"] == []
    assert (told["records_compared"], told["records_total"], told["trunk_compared"]) == (32, 32, True)
    assert told["pack_digest"] == pack_digest(pack)
    assert "reproduced: the same bytes" in moe_pack("reproduce", pack, "--source", source, "--sample", "3").out


def test_only_the_records_that_are_named_are_read(
    source: Path, pack: Path, moe_pack: MoePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moepack.layout.reader import Pack

    stored, read = Pack.stored_record, []

    def noted(self: Pack, layer: int, expert: int) -> Any:
        read.append((layer, expert))
        return stored(self, layer, expert)

    monkeypatch.setattr(Pack, "stored_record", noted)
    told = found(moe_pack("reproduce", pack, "--source", source, "--experts", "3:7,1:2-4,1:3", "--json"))
    assert read == [(1, 2), (1, 3), (1, 4), (3, 7)]
    assert (told["ok"], told["records_compared"], told["how"]) == (True, 4, "as named")


def test_a_seed_draws_the_same_sample_again_and_another_another(source: Path, pack: Path, moe_pack: MoePack) -> None:
    """The pack is damaged everywhere, so the findings tell which experts were looked at."""
    for layer in range(4):
        for expert in range(8):
            flip(pack / f"experts/layer_{layer:02d}.bin", expert * stride(pack))

    def looked_at(*options: object) -> list[tuple[int, int]]:
        told = found(moe_pack("reproduce", pack, "--source", source, "--sample", "20%", "--json", *options))
        return [(one["layer"], one["expert"]) for one in told["findings"]]

    assert looked_at() == looked_at("--seed", 0) != looked_at("--seed", 1)
    assert len(looked_at()) == 7


def test_a_damaged_record_is_told_from_one_that_is_other(source: Path, pack: Path, moe_pack: MoePack) -> None:
    flip(pack / LAYER, 2 * stride(pack) + 3)
    done = moe_pack("reproduce", pack, "--source", source, "--experts", "1:2", "--json")
    done.refused(1, "1 of 1 experts differ")
    assert [(one["kind"], one["layer"], one["expert"], one["component"]) for one in found(done)["findings"]] == [
        ("damage", 1, 2, "gate.weight")
    ]


def test_other_weights_are_found_though_headers_agree(checkpoint: Path, pack: Path, moe_pack: MoePack) -> None:
    with_other_weights(checkpoint)
    done = moe_pack("reproduce", pack, "--source", checkpoint, "--sample", "100%", "--json")
    done.refused(1, pack, "1 of 32 experts differ")
    findings = found(done)["findings"]
    assert {(one["kind"], one["layer"], one["expert"]) for one in findings} == {("other", 1, 5)}
    assert all(one["component"].startswith("up.") for one in findings)


def test_source_digests_find_what_no_sample_looked_at(checkpoint: Path, pack: Path, moe_pack: MoePack) -> None:
    with_other_weights(checkpoint)
    asked = ("reproduce", pack, "--source", checkpoint, "--experts", "0:0", "--json")
    sampled = found(moe_pack(*asked))
    assert (sampled["ok"], sampled["source_digests"]) == (True, False)
    done = moe_pack(*asked, "--source-digests")
    done.refused(1, checkpoint, "model.safetensors differ", "every expert looked at is equal")
    wanted = json.loads((pack / "manifest.json").read_bytes())["source"]["files"][0]["sha256"]
    written = sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert found(done)["source"] == [{"field": "model.safetensors.sha256", "a": wanted, "b": written}]
    assert f"{checkpoint} is not what {pack} was made from, by its weight files" in done.err


def test_source_digests_agree_with_the_checkpoint_itself(source: Path, pack: Path, moe_pack: MoePack) -> None:
    asked = ("reproduce", pack, "--source", source, "--experts", "0:0", "--source-digests")
    told = found(moe_pack(*asked, "--json"))
    assert (told["ok"], told["source_digests"], told["source"]) == (True, True, [])
    assert "all weight files of the checkpoint" in moe_pack(*asked).out


def test_source_digests_judge_files_of_the_manifests_names_only(
    make_checkpoint: CheckpointMaker, pack: Path, moe_pack: MoePack
) -> None:
    """The same weights in other shards: told by their names, as without the option."""
    other = make_checkpoint(Variant(shard="100KB"))
    asked = ("reproduce", pack, "--source", other, "--experts", "0:0", "--json")
    assert found(moe_pack(*asked, "--source-digests"))["source"] == found(moe_pack(*asked))["source"] != []


def test_another_trunk_names_its_tensor(checkpoint: Path, pack: Path, moe_pack: MoePack) -> None:
    with_another_norm(checkpoint)
    assert moe_pack("reproduce", pack, "--source", checkpoint, "--json").code in (0, 1)
    done = moe_pack("reproduce", pack, "--source", checkpoint, "--trunk", "--json")
    done.refused(1, "the trunk differs")
    assert [(one["component"], one["kind"]) for one in found(done)["findings"]] == [("model.norm.weight", "other")]


def test_a_damaged_trunk_is_told_from_one_that_is_other(source: Path, pack: Path, moe_pack: MoePack) -> None:
    flip(pack / "trunk.safetensors", 70000)
    done = moe_pack("reproduce", pack, "--source", source, "--trunk", "--json")
    done.refused(1, "the trunk differs")
    assert {(one["file"], one["kind"]) for one in found(done)["findings"]} == {("trunk.safetensors", "damage")}


@pytest.mark.parametrize(("experts", "code"), [("1:2,1:3", 4), ("1:2,0:0", 1)])
def test_records_that_cannot_be_read_are_the_disks_fault_unless_others_differ(
    experts: str, code: int, source: Path, pack: Path, moe_pack: MoePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moepack.layout.reader import Pack

    stored = Pack.stored_record

    def failing(self: Pack, layer: int, expert: int) -> Any:
        if layer == 1:
            raise StorageError("Input/output error")
        return stored(self, layer, expert)

    flip(pack / "experts/layer_00.bin", 3)
    monkeypatch.setattr(Pack, "stored_record", failing)
    done = moe_pack("reproduce", pack, "--source", source, "--experts", experts, "--json")
    done.refused(code, "2 of 2 experts cannot be read" if code == 4 else "1 of 2 experts differ, and 1 of 2")


def test_another_source_is_said_first(make_checkpoint: CheckpointMaker, pack: Path, moe_pack: MoePack) -> None:
    other = make_checkpoint(Variant(shard="100KB"))
    done = moe_pack("reproduce", pack, "--source", other, "--json")
    done.refused(1, "is not what", "was made from", "every expert looked at is equal")
    assert done.err.splitlines()[0].startswith(f"{other} is not what {pack} was made from, by its weight files")
    assert found(done)["findings"] == []
    assert not found(done)["ok"]


def test_another_tokenizer_is_told(checkpoint: Path, pack: Path, moe_pack: MoePack) -> None:
    (checkpoint / "chat_template.jinja").write_text("another")
    done = moe_pack("reproduce", pack, "--source", checkpoint, "--json")
    done.refused(1, "chat_template.jinja")
    assert [change["field"] for change in found(done)["files"]] == ["chat_template.jinja"]


def test_another_model_is_refused_in_a_sentence(
    make_checkpoint: CheckpointMaker, pack: Path, moe_pack: MoePack
) -> None:
    other = make_checkpoint(Variant(Shape(experts=6)))
    for command in ("reproduce", "repair"):
        if command == "repair":
            flip(pack / LAYER)
        moe_pack(command, pack, "--source", other).refused(1, other, "another model", "num_experts is 6, not 8")


@pytest.mark.parametrize(
    ("options", "culprits"),
    [
        (("--experts", "4:0"), ["4:0", "layers 0 to 3 of experts 0 to 7"]),
        (("--experts", "1:8"), ["1:8"]),
        (("--experts", "1:5-3"), ["1:5-3"]),
        (("--experts", "one"), ["'one' names no expert", "12:345"]),
        (("--experts", ""), ["names no expert"]),
        (("--experts", "1:2", "--sample", "1%"), ["leave --sample and --seed out"]),
        (("--experts", "1:2", "--seed", "3"), ["leave --sample and --seed out"]),
        (("--sample", "0"), ["'0' is no sample"]),
        (("--sample", "0%"), ["'0%' is no sample"]),
        (("--sample", "half"), ["'half' is no sample"]),
        (("--calibration", __file__), [__file__]),
    ],
)
def test_what_cannot_be_reproduced_is_refused(
    source: Path, pack: Path, moe_pack: MoePack, options: tuple[str, ...], culprits: list[str]
) -> None:
    code = 3 if options[0] == "--calibration" else 2
    moe_pack("reproduce", pack, "--source", source, *options).refused(code, *culprits)


def test_a_source_is_needed(pack: Path, moe_pack: MoePack) -> None:
    moe_pack("reproduce", pack).refused(2, "--source SRC")


# calibrated packs and overrides


def test_a_calibrated_pack_with_overrides_is_reproduced_and_repaired(
    source: Path, calibrated_pack: Path, whole_calibration: Path, moe_pack: MoePack
) -> None:
    options = ("--source", source, "--calibration", whole_calibration)
    good = tree(calibrated_pack)
    assert found(moe_pack("reproduce", calibrated_pack, *options, "--sample", "100%", "--json"))["ok"]
    flip(calibrated_pack / LAYER, 5 * stride(calibrated_pack) + 9)
    told = found(moe_pack("repair", calibrated_pack, *options, "--json"))
    assert told["mended"] == [{"file": LAYER, "experts": [5]}]
    assert tree(calibrated_pack) == good


def test_the_right_calibration_is_asked_for(
    source: Path, pack: Path, calibrated_pack: Path, whole_calibration: Path, tmp_path: Path, moe_pack: MoePack
) -> None:
    moe_pack("reproduce", calibrated_pack, "--source", source).refused(2, "give it as --calibration")
    moe_pack("reproduce", pack, "--source", source, "--calibration", whole_calibration).refused(
        2, "leave --calibration"
    )


# repair


def damage(pack: Path, *kinds: str) -> None:
    size = stride(pack)
    for kind in kinds:
        match kind:
            case "record":
                flip(pack / LAYER, 3 * size + 40)
            case "padding":
                flip(pack / LAYER, 4 * size - 1)
            case "layer":
                (pack / "experts/layer_02.bin").unlink()
            case "short layer":
                replace_file(pack / "experts/layer_03.bin", (pack / "experts/layer_03.bin").read_bytes()[: 5 * size])
            case "long layer":
                replace_file(pack / "experts/layer_00.bin", (pack / "experts/layer_00.bin").read_bytes() + b"more")
            case "trunk":
                flip(pack / "trunk.safetensors", 70000)
            case "digests":
                flip(pack / "digests.bin", 100)
            case "sums":
                flip(pack / "SHA256SUMS", 10)
            case "config":
                (pack / "config.json").unlink()
            case "experts":
                shutil.rmtree(pack / "experts")


ALL = ("record", "layer", "short layer", "long layer", "trunk", "digests", "config", "sums")


@pytest.mark.parametrize(
    "kinds",
    [
        *((kind,) for kind in (*ALL, "experts")),
        ("record", "digests"),
        ("experts", "digests", "trunk"),
        ALL,
    ],
    ids=" and ".join,
)
def test_what_is_damaged_is_made_again(kinds: tuple[str, ...], source: Path, pack: Path, moe_pack: MoePack) -> None:
    good = tree(pack)
    damage(pack, *kinds)
    assert moe_pack("verify", pack).code == 1
    manifest = (pack / "manifest.json").stat()
    done = moe_pack("repair", pack, "--source", source)
    assert (done.code, "repaired" in done.out) == (0, True), done.err
    assert tree(pack) == good
    assert (pack / "manifest.json").stat().st_ino == manifest.st_ino
    assert moe_pack("verify", pack).code == 0
    assert not pack.with_name("pack.repair").exists()


def test_only_damaged_records_are_made_again(source: Path, pack: Path, moe_pack: MoePack) -> None:
    damage(pack, "record", "short layer", "long layer")
    told = found(moe_pack("repair", pack, "--source", source, "--json"))
    assert told["mended"] == [
        {"file": "experts/layer_00.bin", "experts": []},
        {"file": LAYER, "experts": [3]},
        {"file": "experts/layer_03.bin", "experts": [5, 6, 7]},
    ]


def stamps(pack: Path) -> dict[Path, tuple[int, int, int]]:
    """Which file each is, and when it was changed; not when it was read."""
    states = {path: path.stat() for path in pack.rglob("*")}
    return {path: (state.st_ino, state.st_size, state.st_mtime_ns) for path, state in states.items()}


def test_a_sound_pack_is_left_alone(source: Path, pack: Path, moe_pack: MoePack) -> None:
    before = stamps(pack)
    pack.with_name("pack.repair").mkdir()
    (pack.with_name("pack.repair") / MARKER).write_text("")
    (pack.with_name("pack.repair") / "config.json.tmp").write_text("left by a crash")
    done = moe_pack("repair", pack, "--source", source)
    assert (done.code, "nothing was damaged" in done.out) == (0, True)
    assert stamps(pack) == before
    assert not pack.with_name("pack.repair").exists()


def test_a_stray_is_named_and_left(source: Path, pack: Path, moe_pack: MoePack) -> None:
    (pack / "notes.txt").write_text("mine")
    damage(pack, "record")
    done = moe_pack("repair", pack, "--source", source, "--json")
    done.refused(1, "notes.txt does not belong there")
    assert found(done)["stray"] == ["notes.txt"]
    assert [one["file"] for one in found(done)["mended"]] == [LAYER]


def test_a_source_that_gives_other_bytes_changes_nothing(checkpoint: Path, pack: Path, moe_pack: MoePack) -> None:
    with_other_weights(checkpoint)
    damage(pack, "config", "trunk")
    flip(pack / LAYER, 5 * stride(pack) + 20)
    before = tree(pack)
    done = moe_pack("repair", pack, "--source", checkpoint)
    done.refused(1, "layer 1, expert 5", "nothing was changed")
    assert tree(pack) == before
    assert not pack.with_name("pack.repair").exists()


def test_a_source_without_a_file_changes_nothing(checkpoint: Path, pack: Path, moe_pack: MoePack) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    (pack / "chat_template.jinja").unlink()
    damage(pack, "record")
    before = tree(pack)
    moe_pack("repair", pack, "--source", checkpoint).refused(1, "has no chat_template.jinja", "nothing was changed")
    assert tree(pack) == before


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("trunk", "trunk.safetensors, made again"),
        ("chat_template.jinja", "chat_template.jinja, made again"),
        ("record", "layer 1, expert 5, made again"),
    ],
)
def test_each_kind_of_file_from_another_source_changes_nothing(
    kind: str, told: str, checkpoint: Path, pack: Path, moe_pack: MoePack
) -> None:
    """One file is damaged and the source's is another: nothing else can be what stops the repair."""
    if kind == "trunk":
        with_another_norm(checkpoint)
        damage(pack, "trunk")
    elif kind == "record":
        with_other_weights(checkpoint)
        flip(pack / LAYER, 5 * stride(pack) + 20)
    else:
        (checkpoint / kind).write_text("another")
        (pack / kind).unlink()
    before = tree(pack)
    moe_pack("repair", pack, "--source", checkpoint).refused(1, told, "another digest", "nothing was changed")
    assert tree(pack) == before


def test_a_pack_that_was_sealed_with_damage_is_not_called_repaired(source: Path, pack: Path, moe_pack: MoePack) -> None:
    flip(pack / "experts/layer_03.bin")
    seal_sums(pack)
    before = tree(pack)
    done = moe_pack("repair", pack, "--source", source)
    done.refused(1, "experts/layer_03.bin, made again", pack / "SHA256SUMS", "nothing was changed")
    assert tree(pack) == before


def test_a_sealed_pack_that_is_none_is_not_called_undamaged(source: Path, pack: Path, moe_pack: MoePack) -> None:
    edit_manifest(pack, lambda fields: fields["layers"][0]["formats"].update(gate="affine4-g64"))
    moe_pack("repair", pack, "--source", source).refused(3, "layer_00.bin", "F3")


def test_a_mended_pack_that_is_none_is_not_called_repaired(source: Path, pack: Path, moe_pack: MoePack) -> None:
    """Only a trunk's formats contradict its tensors, which no digest tells."""
    edit_manifest(pack, lambda fields: fields["trunk"]["formats"].update({"model.norm": "affine4-g64"}))
    damage(pack, "config")
    moe_pack("repair", pack, "--source", source).refused(3, "trunk.safetensors")
    moe_pack("verify", pack).refused(3, "trunk.safetensors")


def test_a_directory_in_a_files_place_stops_a_repair_at_once(source: Path, pack: Path, moe_pack: MoePack) -> None:
    flip(pack / "chat_template.jinja", 0)
    (pack / "trunk.safetensors").unlink()
    (pack / "trunk.safetensors").mkdir()
    before = tree(pack)
    moe_pack("repair", pack, "--source", source).refused(2, pack / "trunk.safetensors", "remove it")
    assert tree(pack) == before
    (pack / "trunk.safetensors").rmdir()
    assert moe_pack("repair", pack, "--source", source).code == 0


def test_a_manifest_cannot_be_repaired(source: Path, pack: Path, moe_pack: MoePack) -> None:
    flip(pack / "manifest.json", 400)
    moe_pack("repair", pack, "--source", source).refused(moe_pack("verify", pack).code)


# diff


def test_diff_says_what_and_why(source: Path, pack: Path, tmp_path: Path, moe_pack: MoePack) -> None:
    shutil.copytree(pack, tmp_path / "same")
    done = moe_pack("diff", pack, tmp_path / "same")
    assert (done.code, "identical" in done.out) == (0, True)
    assert moe_pack("build", source, tmp_path / "other", "--expert-format", "book2-g8").code == 0
    done = moe_pack("diff", pack, tmp_path / "other", "--json")
    done.refused(1, "different recipes")
    assert found(done)["difference"]["meaning"] == ["recipe"]
    moe_pack("diff", pack, tmp_path / "nothing").refused(2, tmp_path / "nothing")


# verify and scrub


def test_no_pack_is_made_in_a_pack(source: Path, pack: Path, moe_pack: MoePack) -> None:
    moe_pack("build", source, pack / "inner").refused(2, "inner lies in the pack")


def test_a_pack_that_may_not_be_read_is_no_mistake_of_the_command_line(
    pack: Path, moe_pack: MoePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # which is what typer asks
    assert moe_pack("verify", pack).code == 0


def test_verify_says_what_share_it_checked(pack: Path, moe_pack: MoePack) -> None:
    assert "every byte is what the manifest says" in moe_pack("verify", pack, "--full").out
    quick = moe_pack("verify", pack, "--quick")
    assert (quick.code, "no weights were read" in quick.out, "0 of 32 records" in quick.out) == (0, True, True)
    slices = [found(moe_pack("verify", pack, "--subset", f"{part}/3", "--json")) for part in (1, 2, 3)]
    assert sum(one["records_checked"] for one in slices) == 32
    share = found(moe_pack("verify", pack, "--subset", "25%", "--seed", 3, "--json"))
    assert (share["scope"], share["ok"], share["records_total"]) == ("25% by seed 3", True, 32)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (("--quick", "--full"), "exclude each other"),
        (("--quick", "--subset", "1/2"), "exclude each other"),
        (("--subset", "0/2"), "'0/2' is no subset"),
        (("--subset", "200%"), "'200%' is no subset"),
        (("--seed", "3"), "there is none"),
        (("--subset", "1/2", "--seed", "3"), "1/2 is drawn by no seed"),
    ],
)
def test_modes_that_contradict_each_other(
    options: tuple[str, ...], culprit: str, pack: Path, moe_pack: MoePack
) -> None:
    moe_pack("verify", pack, *options).refused(2, culprit)


def test_a_sealed_pack_that_is_none_is_not_called_intact(pack: Path, moe_pack: MoePack) -> None:
    """Every digest agrees, but the trunk is no tensor file."""
    from moepack.manifests.digest import of_bytes

    trunk, before = bytes(1000), (pack / "trunk.safetensors").read_bytes()
    replace_file(pack / "trunk.safetensors", trunk)
    digests = (sha256(content).hexdigest().encode() for content in (before, trunk))
    sums = (pack / "SHA256SUMS").read_bytes().replace(*digests)
    replace_file(pack / "SHA256SUMS", sums)

    def seal(fields: dict[str, Any]) -> None:
        listed = {file["name"]: file for file in fields["files"]}
        for name, content in (("trunk.safetensors", trunk), ("SHA256SUMS", sums)):
            listed[name].update(size=len(content), blake3=of_bytes(content).hex())

    edit_manifest(pack, seal)
    for options in ((), ("--quick",)):
        moe_pack("verify", pack, *options).refused(3, "trunk.safetensors")


def test_scrub_verifies_at_low_priority(pack: Path, moe_pack: MoePack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "lower_priority", lambda: ["as said"])
    done = moe_pack("scrub", pack, "--rate", "500MB/s")
    assert (done.code, "intact" in done.out, "priority: as said" in done.err) == (0, True, True)
    flip(pack / LAYER)
    moe_pack("scrub", pack).refused(1, pack, "damaged")
    assert not pack.with_name("pack.scrub.json").exists()
    moe_pack("scrub", pack, "--rate", "fast").refused(2, "'fast' is not a rate")


def test_an_interrupted_scrub_goes_on(pack: Path) -> None:
    """Ctrl-C after the first layers, as a terminal sends it."""
    program = [sys.executable, "-c", "from moepack.convert.cli import main; main()", "scrub", str(pack), "--json"]
    state = pack.with_name("pack.scrub.json")
    slow = subprocess.Popen([*program, "--rate", "1MB/s"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (state.exists() and b"layer_00" in state.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.01)
    slow.send_signal(signal.SIGINT)
    out, err = slow.communicate(timeout=30)
    assert (slow.returncode, out) == (130, ""), err
    assert f"the same command goes on from {os.fspath(state)}" in err
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["ok"]
    assert 0 < told["bytes_earlier"] < told["bytes_checked"] == told["bytes_total"]
    assert not state.exists()
