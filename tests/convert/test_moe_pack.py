"""`moe-pack` as a user meets it: exit codes, one sentence for each failure, nothing half-written."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from checkpoints import NARROW, CheckpointMaker, Variant
from damage import Damage, truncate
from packs import PLAIN, build_pack
from ran import Ran

from moepack import __version__
from moepack.convert import cli, report, shipped
from moepack.layout.reader import Pack
from moepack.manifests import canonical
from moepack.manifests.manifest import read_manifest, seal


@pytest.mark.parametrize("there", ["directory", "file", "link"])
def test_an_existing_target_is_left_alone(
    there: str, make_checkpoint: CheckpointMaker, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    target = tmp_path / "pack"
    {"directory": target.mkdir, "file": target.touch, "link": lambda: target.symlink_to("nowhere")}[there]()
    moe_pack("build", make_checkpoint(Variant()), target).refused(2, target, "exists")
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_a_target_inside_the_checkpoint_is_refused(checkpoint: Path, moe_pack: Callable[..., Ran]) -> None:
    moe_pack("build", checkpoint, checkpoint / "pack").refused(2, "inside the checkpoint")


def test_a_target_in_no_folder_is_refused(
    make_checkpoint: CheckpointMaker, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    moe_pack("build", make_checkpoint(Variant()), tmp_path / "no" / "pack").refused(2, tmp_path / "no")


def test_a_disk_without_room_is_refused_before_writing(
    make_checkpoint: CheckpointMaker, tmp_path: Path, moe_pack: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    moe_pack("build", make_checkpoint(Variant()), tmp_path / "pack").refused(4, tmp_path, "free")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_something_resumable(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    """A limit on file sizes makes the kernel refuse the trunk in the middle, as a full disk would."""
    checkpoint, target = make_checkpoint(Variant()), tmp_path / "pack"
    program = [sys.executable, "-c", "from moepack.convert.cli import main; main()"]
    command = [*program, "build", checkpoint, target, *PLAIN]

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    full = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    Ran(full.returncode, full.stdout, full.stderr).refused(4, tmp_path)
    assert not target.exists()
    build_pack(checkpoint, target)
    build_pack(checkpoint, tmp_path / "whole")
    assert (target / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()


def swap(pack: Path) -> None:
    first, second, aside = pack / "experts/layer_00.bin", pack / "experts/layer_01.bin", pack / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def climb(pack: Path) -> None:
    """A manifest that is sound but for a file's name, with the checksum that belongs to it."""
    manifest = read_manifest(pack)
    layer = msgspec.structs.replace(manifest.layers[0], file="../layer_00.bin")
    climbing = seal(msgspec.structs.replace(manifest, layers=[layer, *manifest.layers[1:]]))
    (pack / "manifest.json").write_bytes(canonical.encode(climbing))


BAD_PACKS: dict[str, tuple[Damage, int, str]] = {
    "missing file": (lambda at: (at / "experts/layer_02.bin").unlink(), 1, "layer_02.bin"),
    "extra file": (lambda at: (at / "extra").touch(), 1, "extra"),
    "truncated file": (lambda at: truncate(at / "experts/layer_03.bin"), 1, "layer_03.bin"),
    "swapped files": (swap, 1, "layer_00.bin"),
    "damaged record": (lambda at: flip(at / "experts/layer_01.bin"), 1, "layer 1"),
    "damaged trunk": (lambda at: flip(at / "trunk.safetensors"), 1, "trunk.safetensors"),
}


@pytest.mark.parametrize("case", BAD_PACKS)
def test_verify_names_what_is_wrong(case: str, pack: Path, moe_pack: Callable[..., Ran]) -> None:
    damage, code, culprit = BAD_PACKS[case]
    damage(pack)
    done = moe_pack("verify", pack)
    done.refused(code, pack)
    assert culprit in done.out
    found = json.loads(moe_pack("verify", pack, "--json").out)
    assert not found["ok"]
    assert any(culprit.removeprefix("layer ") in str(finding) for finding in found["findings"])


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_manifest_that_climbs_out_is_refused(command: str, pack: Path, moe_pack: Callable[..., Ran]) -> None:
    climb(pack)
    moe_pack(command, pack).refused(3, "..")


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_what_is_no_pack_is_refused(command: str, tmp_path: Path, moe_pack: Callable[..., Ran]) -> None:
    moe_pack(command, tmp_path).refused(3, "manifest.json")


def test_the_commands_on_a_sound_checkpoint(
    make_checkpoint: CheckpointMaker, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    checkpoint, target = make_checkpoint(Variant(fused=True, vision=True)), tmp_path / "pack"
    planned = moe_pack("plan", checkpoint, "--json", "--out", tmp_path)
    built = moe_pack("build", checkpoint, target, "--json")
    seen = moe_pack("inspect", target, "--json")
    checked = moe_pack("verify", target, "--json")
    assert [ran.code for ran in (planned, built, seen, checked)] == [0, 0, 0, 0]
    assert "left out: the vision tower" in built.err
    facts, pack, report = json.loads(planned.out), json.loads(seen.out), json.loads(checked.out)
    assert facts["total_bytes"] == pack["total_bytes"] == report["bytes_checked"]
    assert json.loads(built.out)["pack_digest"] == report["pack_digest"]
    for command in (["plan", checkpoint], ["inspect", target], ["verify", target]):
        ran = moe_pack(*command)
        assert ran.code == 0
        assert len(ran.out.splitlines()) >= 4


def test_options_reach_the_pack(make_checkpoint: CheckpointMaker, tmp_path: Path, moe_pack: Callable[..., Ran]) -> None:
    options = ["--expert-format", "affine4-g32", "--method", "minmax", "--trunk", "affine8-g64", "--jobs", "1"]
    assert moe_pack("build", make_checkpoint(Variant()), tmp_path / "pack", *options).code == 0
    with Pack.open(tmp_path / "pack") as pack:
        recipe = pack.manifest.recipe
        assert (recipe.expert_format, recipe.method, recipe.trunk_format) == ("affine4-g32", "minmax", "affine8-g64")
        assert set(pack.manifest.trunk.formats.values()) == {"affine8-g64"}


@pytest.mark.parametrize(
    "arguments",
    [["build"], ["build", "a"], ["plan", "a", "--nonsense"], ["nonsense"], ["verify", "a", "--jobs", "0"]],
)
def test_wrong_usage_exits_with_2(arguments: list[str], moe_pack: Callable[..., Ran]) -> None:
    done = moe_pack(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "Traceback" not in done.err


def test_a_format_that_does_not_fit_is_a_usage_error(
    make_checkpoint: CheckpointMaker, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    narrow = make_checkpoint(Variant(shape=NARROW))
    moe_pack("build", narrow, tmp_path / "pack", *PLAIN).refused(2, "affine2-g64", "affine2-g32")
    moe_pack("plan", "anything", "--expert-format", "q4").refused(2, "q4", "affine2-g64")
    assert not list(tmp_path.iterdir())


def test_version_and_help(moe_pack: Callable[..., Ran]) -> None:
    assert moe_pack("--version").out == f"moe-pack {__version__}\n"
    for command in ([], ["plan"], ["build"], ["inspect"], ["verify"], ["demo"]):
        shown = moe_pack(*command, "--help")
        assert shown.code == 0
        assert "70 a defect" in " ".join(shown.out.split())
        assert "130" in shown.out
    assert "org/name@revision" in " ".join(moe_pack("build", "--help").out.split())


def test_interrupting_says_how_to_go_on(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    variant = Variant(dtype="float32", fused=True)
    checkpoint, target = make_checkpoint(variant), tmp_path / "pack"
    slow = (
        "import time; from moepack.convert import cli; from moepack.layout.sinks import LayerSink\n"
        "append = LayerSink.append\n"
        "LayerSink.append = lambda *a: (time.sleep(0.2), append(*a))\n"
        "cli.main()"
    )
    command = [sys.executable, "-c", slow, "build", str(checkpoint), str(target), *PLAIN]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not list(tmp_path.glob("pack.partial/experts/*")):
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGINT)
    _, err = child.communicate()
    assert child.returncode == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err
    build_pack(checkpoint, target)


def test_the_demo_packs_and_says_what_to_run_next(tmp_path: Path, moe_pack: Callable[..., Ran]) -> None:
    done = moe_pack("demo", tmp_path / "demo")
    assert done.code == 0
    assert f"moe-run generate {tmp_path / 'demo'}" in done.err
    assert shipped.QUESTION.exists()
    assert moe_pack("verify", tmp_path / "demo").code == 0


def test_a_missing_demo_is_a_sentence(
    tmp_path: Path, moe_pack: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "CHECKPOINT", tmp_path / "nowhere")
    moe_pack("demo", tmp_path / "demo").refused(2, "nowhere")


@pytest.mark.parametrize("name", ["a[/red]", "b[bold]"])
def test_paths_with_brackets_are_shown_as_they_are(
    name: str, make_checkpoint: CheckpointMaker, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    checkpoint, target = make_checkpoint.copy(Variant(), tmp_path / name / "source"), tmp_path / name / "p"
    for command in (["plan", checkpoint], ["build", checkpoint, target], ["inspect", target], ["verify", target]):
        ran = moe_pack(*command)
        assert ran.code == 0, ran.err
        assert f"{name}/" in ran.out
    (target / "[bold]stray").touch()
    assert "[bold]stray" in moe_pack("verify", target).out


def test_a_stray_file_is_no_damage(pack: Path, moe_pack: Callable[..., Ran]) -> None:
    (pack / "stray").touch()
    moe_pack("verify", pack).refused(1, "stray does not belong there; remove it")
    (pack / "other").touch()
    moe_pack("verify", pack).refused(1, "and 1 more do not belong there; remove them")
    flip(pack / "experts/layer_01.bin")
    moe_pack("verify", pack).refused(1, "is damaged: 1 finding;", "pack the checkpoint again")


def test_a_finding_is_one_line_without_padding(pack: Path, moe_pack: Callable[..., Ran]) -> None:
    stray = "a name that is long enough for two lines of eighty columns " * 3
    (pack / stray).touch()
    lines = moe_pack("verify", pack).out.splitlines()
    assert len([line for line in lines if stray in line]) == 1
    assert not [line for line in lines if line.endswith("  ")]


@pytest.mark.parametrize("command", ["plan", "build"])
def test_a_checkpoint_without_a_tokenizer_is_remarked_upon(
    command: str, checkpoint: Path, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    arguments = [checkpoint, tmp_path / "pack"] if command == "build" else [checkpoint]
    with_one = moe_pack(command, *arguments)
    shutil.rmtree(tmp_path / "pack", ignore_errors=True)
    (checkpoint / "tokenizer.json").unlink()
    without = moe_pack(command, *arguments)
    assert with_one.code == without.code == 0
    assert "tokenizer.json" not in with_one.err
    assert "has no tokenizer.json" in without.err


def test_the_target_is_looked_at_before_anything_is_fetched(
    tmp_path: Path, moe_pack: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr("moepack.convert.hub.download", fetch)
    (tmp_path / "file").touch()
    moe_pack("build", "org/name", tmp_path).refused(2, tmp_path, "exists")
    moe_pack("build", "org/name", tmp_path / "no" / "pack").refused(2, tmp_path / "no", "not a folder")
    moe_pack("build", "org/name", tmp_path / "file" / "pack").refused(2, tmp_path / "file", "not a folder")
    monkeypatch.setattr(os, "access", lambda *_: False)
    moe_pack("build", "org/name", tmp_path / "pack").refused(4, tmp_path)


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 bytes"), (999_999, "999999 bytes"), (19_600_000, "19.6 MB"), (126_400_000_000, "126.40 GB")],
)
def test_amounts_have_the_unit_that_says_most(size: int, shown: str) -> None:
    assert report.amount(size) == shown


@pytest.mark.parametrize("command", ["plan", "build"])
def test_an_instruction_set_that_does_not_run_here_is_refused(
    command: str, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    arguments = [command, str(make_checkpoint(Variant())), *([str(tmp_path / "pack")] if command == "build" else [])]
    program = [sys.executable, "-c", "from moepack.convert.cli import main; main()", *arguments]
    environment = {**os.environ, "MOEPACK_ISA": "avx1024"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    Ran(done.returncode, done.stdout, done.stderr).refused(2, "MOEPACK_ISA", "baseline")
    assert not list(tmp_path.iterdir())
