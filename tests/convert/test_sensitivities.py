"""Sensitivities from the command line: measured, kept in the calibration file, and what recipes are chosen by."""

import json
import random
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from checkpoints import TINY, CheckpointMaker, Shape, Variant
from ran import Ran

from moepack.convert import choice, cli
from moepack.convert.calibration import header as headers
from moepack.convert.calibration import measuring
from moepack.convert.calibration.file import CalibrationFile
from moepack.convert.calibration.plan import CalibrationPlan
from moepack.convert.sensitivities import Sensitivities
from moepack.layout.record import PROJECTIONS
from moepack.manifests import canonical
from moepack.manifests.errors import CorruptInputError
from moepack.runtime.corpus import Room
from moepack.runtime.passage import Passage
from moepack.runtime.quality import divergence

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "again", "and")
SMALL = ("--window", "24", "--tokens", "600", "--device", "cpu")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, choose = tmp_path_factory.mktemp("text") / "text.txt", random.Random(5)
    path.write_text("\0".join(" ".join(choose.choices(WORDS, k=40)) for _ in range(40)))
    return path


@pytest.fixture
def source(make_checkpoint: CheckpointMaker) -> Path:
    return make_checkpoint(Variant(TINY))


@pytest.fixture
def calibration(moe_pack: Callable[..., Ran], source: Path, text: Path, tmp_path: Path) -> Path:
    options = (*SMALL, "--sensitivities", "--sensitivity-tokens", "200")
    ran = moe_pack("calibrate", source, "--text", text, "-o", tmp_path / "c.moecal", *options)
    assert ran.code == 0, ran.err
    assert "sensitivity" in ran.out
    return tmp_path / "c.moecal"


def test_they_are_kept_and_shown(moe_pack: Callable[..., Ran], calibration: Path) -> None:
    found = json.loads(moe_pack("inspect", calibration, "--json").out)["sensitivities"]
    assert 150 <= found["positions"] <= 250
    assert len(found["layers"]) == TINY.layers
    assert all(layer.keys() == set(PROJECTIONS) and min(layer.values()) > 0 for layer in found["layers"])
    with CalibrationFile.open(calibration) as opened:
        assert opened.sensitivities == msgspec.convert(found, Sensitivities)


class Arrays:
    """The arrays over all tokens: bytes alive, and the most that ever were, since the measurement began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive = self.most = 0
        self.plans: list[CalibrationPlan] = []
        array, planned, measure = Room.array, cli.plan_calibration, cli.measure_sensitivities

        def counted(room: Room, rows: int, width: int) -> Any:
            found = array(room, rows, width)
            self.alive += found.nbytes
            self.most = max(self.most, self.alive)
            weakref.finalize(found, self.free, found.nbytes)
            return found

        def measured(*args: Any, **options: Any) -> Any:
            self.most = self.alive
            return measure(*args, **options)

        def kept(*args: Any, **options: Any) -> CalibrationPlan:
            self.plans.append(planned(*args, **options))
            return self.plans[-1]

        monkeypatch.setattr(Room, "array", counted)
        monkeypatch.setattr(cli, "plan_calibration", kept)
        monkeypatch.setattr(cli, "measure_sensitivities", measured)

    def free(self, size: int) -> None:
        self.alive -= size


@pytest.mark.parametrize("memory", ["1KB", "1GB"])
def test_memory_and_disk_that_are_stated_count_them(
    moe_pack: Callable[..., Ran], source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    arrays, target = Arrays(monkeypatch), tmp_path / "c"
    ran = moe_pack("calibrate", source, "--text", text, "-o", target, *SMALL, "--sensitivities", "--memory", memory)
    assert ran.code == 0, ran.err
    plan = arrays.plans[0]
    without = replace(plan, measured_tokens=0)
    assert f"sensitivities on {plan.measured_tokens} tokens" in ran.err
    stream = plan.measured_tokens * plan.facts.model.hidden_size * 4
    wanted = (1 + 2 * 3 * TINY.layers) * stream + plan.state_bytes
    assert 0.8 * wanted < arrays.most <= wanted
    if memory == "1KB":
        assert plan.disk_bytes >= arrays.most + plan.facts.shape.total_bytes > without.disk_bytes
    else:
        assert plan.memory_bytes - without.memory_bytes > arrays.most - 2 * plan.state_bytes
        assert plan.disk_bytes == without.disk_bytes


def test_an_interrupted_measurement_is_made_again_and_the_layers_are_not(
    moe_pack: Callable[..., Ran], source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    asked = ("calibrate", source, "--text", text, "-o", tmp_path / "c", *SMALL, "--sensitivities")
    with monkeypatch.context() as patched:
        patched.setattr(cli, "measure_sensitivities", interrupted)
        ran = moe_pack(*asked)
    assert ran.code == 130
    assert "a measurement of sensitivities that had begun is made again" in " ".join(ran.err.split())
    monkeypatch.setattr(Passage, "advance", lambda *_, **__: pytest.fail("a finished layer was made again"))
    assert moe_pack(*asked).code == 0
    with CalibrationFile.open(tmp_path / "c") as opened:
        assert opened.sensitivities is not None


def test_logits_are_counted_as_large_as_their_blocks_are() -> None:
    assert measuring.LOGITS_BYTES == divergence.LOGITS_BYTES


def test_recipes_are_chosen_by_them(
    moe_pack: Callable[..., Ran], source: Path, calibration: Path, tmp_path: Path
) -> None:
    with CalibrationFile.open(calibration) as opened:
        known = opened.sensitivities
    assert known is not None
    facts = json.loads(moe_pack("plan", source, "--bits", "2.9", "--calibration", calibration, "--json").out)
    choice = facts["choice"]
    assert choice["sensitivities"] == {"measured": True, "positions": known.positions, "format": known.format}
    assert choice["recipe"] != json.loads(moe_pack("recipe", source, "--bits", "2.9").out)
    shown = moe_pack("plan", source, "--bits", "2.9", "--calibration", calibration).out
    assert "predicted KL" in shown
    assert "summed error" not in shown
    built = moe_pack("build", source, tmp_path / "pack", "--bits", "2.9", "--calibration", calibration)
    assert built.code == 0, built.err
    recipe = json.loads((tmp_path / "pack" / "manifest.json").read_bytes())["recipe"]
    assert recipe == facts["recipe"]
    assert "calibration" not in recipe  # it chose formats; no code depends on it


def test_a_calibrated_method_uses_the_file_for_both(
    moe_pack: Callable[..., Ran], source: Path, calibration: Path, tmp_path: Path
) -> None:
    options = ("--budget", "2MB", "--method", "imatrix", "--calibration", calibration)
    built = moe_pack("build", source, tmp_path / "pack", *options)
    assert built.code == 0, built.err
    recipe = json.loads((tmp_path / "pack" / "manifest.json").read_bytes())["recipe"]
    assert recipe["method"] == "imatrix"
    with CalibrationFile.open(calibration) as opened:
        assert recipe["calibration"]["digest"] == opened.digest


def test_a_budget_counts_what_the_manifest_says_of_the_calibration(
    moe_pack: Callable[..., Ran], source: Path, calibration: Path, tmp_path: Path
) -> None:
    options = ("--method", "imatrix", "--calibration", calibration)
    refused = moe_pack("build", source, tmp_path / "pack", "--budget", "10KB", *options)
    smallest = int(re.findall(r"whose pack has (\d+) bytes", refused.err)[0])
    moe_pack("build", source, tmp_path / "pack", "--budget", smallest - 1, *options).refused(2, f"--budget {smallest}")
    built = moe_pack("build", source, tmp_path / "pack", "--budget", smallest, *options)
    assert built.code == 0, built.err
    assert sum(path.stat().st_size for path in (tmp_path / "pack").rglob("*") if path.is_file()) == smallest


def test_without_them_a_calibration_says_nothing_about_formats(
    moe_pack: Callable[..., Ran], source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert moe_pack("calibrate", source, "--text", text, "-o", tmp_path / "c.moecal", *SMALL).code == 0
    assert json.loads(moe_pack("inspect", tmp_path / "c.moecal", "--json").out)["sensitivities"] is None
    with monkeypatch.context() as patched:
        patched.setattr(choice, "weigh", lambda *_, **__: pytest.fail("formats were weighed"))
        refused = moe_pack("plan", source, "--bits", "2.9", "--calibration", tmp_path / "c.moecal")
    refused.refused(2, f"{tmp_path / 'c.moecal'} has no sensitivities; calibrate with --sensitivities")
    chosen = moe_pack("plan", source, "--bits", "2.9", "--calibration", tmp_path / "c.moecal", "--method", "imatrix")
    assert chosen.code == 0, chosen.err


@pytest.mark.parametrize("method", ["imatrix", "gptq"])
@pytest.mark.parametrize("size", [("--bits", "2.9"), ("--budget", "2MB")])
def test_a_method_that_needs_a_calibration_is_refused_before_formats_are_weighed(
    moe_pack: Callable[..., Ran], source: Path, monkeypatch: pytest.MonkeyPatch, method: str, size: tuple[str, str]
) -> None:
    monkeypatch.setattr(choice, "weigh", lambda *_, **__: pytest.fail("formats were weighed"))
    moe_pack("plan", source, *size, "--method", method).refused(2, f"{method} needs a calibration")


def test_those_of_another_model_are_refused(
    moe_pack: Callable[..., Ran], make_checkpoint: CheckpointMaker, calibration: Path
) -> None:
    other = make_checkpoint(Variant(Shape(seed=9)))
    moe_pack("plan", other, "--bits", "2.9", "--calibration", calibration).refused(2, "another model")


@pytest.mark.parametrize(
    "damage",
    [
        {"layers": [{"gate": 1.0, "up": 1.0, "down": 1.0}]},
        {"layers": [{"gate": -1.0, "up": 1.0, "down": 1.0}] * 4},
        {"layers": [{"gate": 1.0, "up": 1.0}] * 4},
        {"layers": [{"gate": 1.0, "up": 1.0, "side": 1.0}] * 4},
        {"layers": [{"gate": 1e40, "up": 1.0, "down": 1.0}] * 4},
        {"positions": 0},
        {"positions": "many"},
        {"more": 1},
    ],
)
def test_malformed_ones_are_refused(damage: dict[str, object], calibration: Path) -> None:
    with CalibrationFile.open(calibration) as opened:
        facts, known = opened.facts, msgspec.to_builtins(opened.sensitivities)
    sections: list[headers.Section] = []
    header = msgspec.to_builtins(headers.Header("moecal", 1, facts, sections, Sensitivities.equal(1)))
    content = canonical.encode({**header, "sensitivities": {**known, **damage}})
    with pytest.raises(CorruptInputError, match=r"^c\.moecal: .*(sensitivities|positions|gate|Object)"):
        headers.parse(content, "c.moecal")
