"""moe-pack calibrate: resumption, limits, and every way in which it refuses."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibrating import FEW_VISITS, calibrated, windows_of
from checkpoints import TINY, CheckpointMaker, Variant
from failing_system import Crash, failing_system
from msgspec import structs
from packs import build_pack
from ran import Ran

from moepack.convert.calibration.collector import Collector
from moepack.convert.calibration.file import CalibrationFile
from moepack.convert.calibration.report import remark
from moepack.convert.calibration.run import Advance
from moepack.convert.shipped import CHECKPOINT
from moepack.manifests.digest import of_bytes
from moepack.manifests.errors import CorruptInputError, MoepackError, UsageError

MOE_PACK = (sys.executable, "-c", "from moepack.convert.cli import main; main()")
VARIANT = Variant(TINY)
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "again", "and"]
KILLS = 8


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of unequal length."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    choose = random.Random(5)
    documents = (" ".join(choose.choices(WORDS, k=choose.randrange(10, 90))) for _ in range(40))
    path.write_text("\0".join(documents))
    return path


@pytest.fixture(scope="module")
def source(make_checkpoint: CheckpointMaker) -> Path:
    return make_checkpoint(VARIANT)


def command(source: Path, text: Path, out: Path, *more: object) -> list[str]:
    return ["calibrate", str(source), "--text", str(text), "-o", str(out), "--window", "32", *map(str, more)]


def test_two_runs_and_their_report(moe_pack: Callable[..., Ran], source: Path, text: Path, tmp_path: Path) -> None:
    ran = moe_pack(*command(source, text, tmp_path / "a"))
    assert ran.code == 0, ran.err
    assert "correlations" in ran.err
    assert "of memory" in ran.err
    assert "held out" in ran.out
    assert "what gptq gains is hardly told from chance" in " ".join(ran.err.split())
    ran = moe_pack(*command(source, text, tmp_path / "b", "--json", "--threads", 1, "--memory", "1KB"))
    found = json.loads(ran.out)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert found["digest"] == CalibrationFile.open(tmp_path / "a").digest
    assert found["text"]["digest"] == of_bytes(text.read_bytes()).hex()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o444


def test_fewer_tokens_come_from_all_over_the_text(
    moe_pack: Callable[..., Ran], source: Path, text: Path, tmp_path: Path
) -> None:
    ran = moe_pack(*command(source, text, tmp_path / "a", "--tokens", 1000, "--json"))
    assert 700 < json.loads(ran.out)["text"]["tokens"] < 1300


class StoppedError(Exception):
    pass


def stopping(before: int) -> Callable[[Advance], Advance]:
    """Stops when a layer is to be begun."""

    def around(advance: Advance) -> Advance:
        def stopped(layer: int, observer: Collector) -> None:
            if layer == before:
                raise StoppedError
            advance(layer, observer)

        return stopped

    return around


def never_before(first: int) -> Callable[[Advance], Advance]:
    """Allows no layer before the first."""

    def around(advance: Advance) -> Advance:
        def checked(layer: int, observer: Collector) -> None:
            assert layer >= first
            advance(layer, observer)

        return checked

    return around


def stop_before(source: Path, target: Path, layer: int) -> None:
    with pytest.raises(StoppedError):
        calibrated(source, target, windows_of(TINY), around=stopping(layer))


@pytest.mark.parametrize("layer", range(4))
def test_a_stopped_run_goes_on_at_the_next_layer_with_the_same_bytes(
    source: Path, whole_calibration: Path, tmp_path: Path, layer: int
) -> None:
    target = tmp_path / "c"
    stop_before(source, target, layer)
    assert not target.exists()
    states = [path.name for path in (tmp_path / "c.partial").glob("*.states")]
    assert states == ([f"before_{layer:03}.states"] if layer else [])
    calibrated(source, target, windows_of(TINY), around=never_before(layer))
    assert target.read_bytes() == whole_calibration.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("name", ["layer_001.sections", "layer_001.json", "before_003.states"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_what_was_damaged_meanwhile_is_made_again(
    source: Path, whole_calibration: Path, tmp_path: Path, name: str, harm: str
) -> None:
    stop_before(source, tmp_path / "c", 3)
    path = tmp_path / "c.partial" / name
    content = bytearray(path.read_bytes())
    path.unlink()
    if harm == "flip":
        content[len(content) // 2] ^= 1
    if harm != "remove":
        path.write_bytes(content[: len(content) // 2] if harm == "cut" else content)
    calibrated(source, tmp_path / "c", windows_of(TINY))
    assert (tmp_path / "c").read_bytes() == whole_calibration.read_bytes()


@pytest.mark.parametrize("change", [{"held_out": 5}, {"expert_hessians": "none"}, {"corpus": windows_of(TINY, 2)}])
def test_another_calibration_does_not_go_on_there(source: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    stop_before(source, tmp_path / "c", 2)
    corpus = change.pop("corpus", windows_of(TINY))
    with pytest.raises(UsageError, match="was begun for another model, text, option or version"):
        calibrated(source, tmp_path / "c", corpus, **change)


def test_crashes_at_any_call_resume_to_the_same_bytes(source: Path, whole_calibration: Path, tmp_path: Path) -> None:
    with failing_system(tmp_path / "stash") as system:
        calibrated(source, tmp_path / "counted", windows_of(TINY))
    (tmp_path / "counted").unlink()
    assert system.calls > 60
    for crash_at in range(1, system.calls + 1, 11):
        target = tmp_path / f"crash{crash_at}"
        with failing_system(tmp_path / "stash", crash_at), pytest.raises(Crash):
            calibrated(source, target, windows_of(TINY))
        if not target.exists():
            calibrated(source, target, windows_of(TINY))
            assert not target.with_name(target.name + ".partial").exists()
        assert target.read_bytes() == whole_calibration.read_bytes()
        target.unlink()


def test_killed_runs_resume_to_the_same_bytes(source: Path, text: Path, tmp_path: Path) -> None:
    subprocess.run([*MOE_PACK, *command(source, text, tmp_path / "whole")], check=True, capture_output=True)
    chance, target, kills = random.Random(3), tmp_path / "c", 0
    while kills < KILLS:
        process = subprocess.Popen([*MOE_PACK, *command(source, text, target)], stderr=subprocess.PIPE)
        _wait_for_work(process, target)
        time.sleep(chance.random() * 0.3)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if target.exists():
            assert target.read_bytes() == (tmp_path / "whole").read_bytes()
            target.unlink()
            shutil.rmtree(tmp_path / "c.partial", ignore_errors=True)
    subprocess.run([*MOE_PACK, *command(source, text, target)], check=True, capture_output=True)
    assert target.read_bytes() == (tmp_path / "whole").read_bytes()


def _wait_for_work(process: subprocess.Popen[bytes], target: Path) -> None:
    while process.poll() is None and not target.with_name(target.name + ".partial").exists():
        time.sleep(0.01)


def test_ctrl_c_exits_130_and_says_how_to_go_on(source: Path, text: Path, tmp_path: Path) -> None:
    code, err = 0, b""
    while code == 0:  # on a busy machine it may be done before it is interrupted
        (tmp_path / "c").unlink(missing_ok=True)
        process = subprocess.Popen([*MOE_PACK, *command(source, text, tmp_path / "c")], stderr=subprocess.PIPE)
        _wait_for_work(process, tmp_path / "c")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        code = process.returncode
    assert code == 130, err
    assert b"Traceback" not in err
    assert b"goes on" in err
    assert not (tmp_path / "c").exists()


def test_one_process_at_a_time(source: Path, tmp_path: Path) -> None:
    def around(advance: Advance) -> Advance:
        with pytest.raises(MoepackError, match="another moe-pack is writing"):
            calibrated(source, tmp_path / "c", windows_of(TINY))
        return advance

    def inside(advance: Advance) -> Advance:
        def checked(layer: int, observer: Collector) -> None:
            around(advance)
            advance(layer, observer)

        return checked

    calibrated(source, tmp_path / "c", windows_of(TINY), around=inside)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (["--held-out", "1"], "--held-out 1 is out of range: every so many-th window is held out, from 2"),
        (["--held-out", "0"], "--held-out 0 is out of range"),
        (["--window", "1"], "windows of 1 tokens"),
        (["--tokens", "100"], "--tokens is too small: it takes"),
        (["--expert-hessians", "most"], "'most'"),
        (["--hessian-bytes", "much"], "much"),
        (["--device", "tpu"], "'tpu'"),
        (["--threads", "0"], "0 threads"),
        (["--through", "nowhere"], "nowhere"),
    ],
)
def test_options_that_cannot_be_met(
    moe_pack: Callable[..., Ran], source: Path, text: Path, tmp_path: Path, options: list[str], culprit: str
) -> None:
    ran = moe_pack(*command(source, text, tmp_path / "c"), *options)
    ran.refused(2, culprit)
    assert not list(tmp_path.iterdir())


def test_the_tokens_it_says_are_enough_are(
    moe_pack: Callable[..., Ran], source: Path, text: Path, tmp_path: Path
) -> None:
    asked = (*command(source, text, tmp_path / "c"), "--window", "20", "--tokens")
    refused = moe_pack(*asked, "40")
    enough = re.findall(r"give --tokens (\d+) or more", refused.err)[0]
    assert moe_pack(*asked, enough).code == 0


def test_texts_that_cannot_be_used(moe_pack: Callable[..., Ran], source: Path, tmp_path: Path) -> None:
    path = tmp_path / "text"
    moe_pack(*command(source, path, tmp_path / "c")).refused(2, path)
    path.write_text("the quick brown fox")
    moe_pack(*command(source, path, tmp_path / "c")).refused(2, path, "too short")
    path.write_text("the quick brown fox" * 5000)
    moe_pack(*command(source, path, tmp_path / "c"), "--window", "5000").refused(2, "context of 4096")
    moe_pack(*command(source, path, tmp_path / "c"), "--window", "4000").refused(2, "too short: it gives")
    path.write_bytes(b"\xff\xfe" * 1000)
    moe_pack(*command(source, path, tmp_path / "c")).refused(2, path, "not UTF-8")


def test_targets_that_cannot_be_used(moe_pack: Callable[..., Ran], source: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("precious")
    moe_pack(*command(source, text, tmp_path / "there")).refused(2, tmp_path / "there")
    assert (tmp_path / "there").read_text() == "precious"
    moe_pack(*command(source, text, tmp_path / "no" / "folder")).refused(2, tmp_path / "no")


def test_checkpoints_that_cannot_be_used(
    moe_pack: Callable[..., Ran], make_checkpoint: CheckpointMaker, text: Path, tmp_path: Path
) -> None:
    bare = make_checkpoint.copy(VARIANT, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    moe_pack(*command(bare, text, tmp_path / "c")).refused(2, bare, "has no tokenizer.json; put the model's own beside")
    build_pack(make_checkpoint(VARIANT), tmp_path / "pack")
    moe_pack(*command(tmp_path / "pack", text, tmp_path / "c")).refused(2, "is a pack")
    moe_pack(*command(bare, text, bare / "c")).refused(2, "lies inside the checkpoint")
    assert not list(bare.glob("c.*"))
    assert not (tmp_path / "c").exists()


def test_activations_that_are_not_finite_are_one_sentence(
    moe_pack: Callable[..., Ran], make_checkpoint: CheckpointMaker, text: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = make_checkpoint.copy(VARIANT, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.post_attention_layernorm.weight"))
    tensors[name] = tensors[name] + 3e38
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    ran = moe_pack(*command(broken, text, tmp_path / "c"))
    ran.refused(3, broken, "not finite", f"; remove {tmp_path / 'c.partial'}, or mend the input")
    assert (tmp_path / "c.partial").is_dir()
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_that_changes_meanwhile_gives_no_file(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    checkpoint = make_checkpoint.copy(VARIANT, tmp_path / "changing")

    def around(advance: Advance) -> Advance:
        os.truncate(checkpoint / "model.safetensors", (checkpoint / "model.safetensors").stat().st_size)
        with (checkpoint / "model.safetensors").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
        return advance

    with pytest.raises(CorruptInputError, match="changed while it was read"):
        calibrated(checkpoint, tmp_path / "c", windows_of(TINY), around=around)
    assert not (tmp_path / "c").exists()


def test_a_pack_of_another_model_is_refused(
    moe_pack: Callable[..., Ran], source: Path, text: Path, tmp_path: Path
) -> None:
    build_pack(CHECKPOINT, tmp_path / "demo")
    ran = moe_pack(*command(source, text, tmp_path / "c", "--through", tmp_path / "demo"))
    ran.refused(2, "not the same model")
    assert not (tmp_path / "c").exists()


def test_statistics_can_be_of_what_a_packs_experts_make_of_the_text(
    moe_pack: Callable[..., Ran], source: Path, text: Path, tmp_path: Path
) -> None:
    build_pack(source, tmp_path / "pack")
    ran = moe_pack(*command(source, text, tmp_path / "through", "--through", tmp_path / "pack", "--json"))
    assert json.loads(ran.out)["through"] == of_bytes((tmp_path / "pack" / "manifest.json").read_bytes()).hex()
    assert moe_pack(*command(source, text, tmp_path / "plain")).code == 0
    with CalibrationFile.open(tmp_path / "through") as through, CalibrationFile.open(tmp_path / "plain") as plain:
        name = "input.pool.diagonal"
        assert np.array_equal(through.layer(0).arrays[name], plain.layer(0).arrays[name])
        assert not np.array_equal(through.layer(1).arrays[name], plain.layer(1).arrays[name])


def test_a_calibration_with_enough_held_out_tokens_passes_without_a_remark(source: Path, tmp_path: Path) -> None:
    plan = calibrated(source, tmp_path / "c", windows_of(TINY))
    assert f"only {plan.facts.text.held_out_tokens} tokens" in str(remark(plan))
    enough = structs.replace(plan.facts.text, held_out_tokens=4096)
    assert remark(replace(plan, facts=structs.replace(plan.facts, text=enough))) is None


def test_memory_stated_is_not_exceeded_by_the_sums(source: Path, tmp_path: Path) -> None:
    plan = calibrated(source, tmp_path / "c", windows_of(FEW_VISITS))
    model = plan.facts.model
    assert plan.memory_bytes > 2 * plan.state_bytes + 4 * 8 * (model.hidden_size**2 + model.moe_intermediate_size**2)
    assert plan.disk_bytes > 2 * (tmp_path / "c").stat().st_size
