"""The action for other people's CI: inputs are used, none becomes code, and its script does what it says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from keys import keys_in
from tinypack import replace_file

from moepack.convert.shipped import CHECKPOINT
from moepack.manifests.manifest import pack_digest

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github/actions/verify-pack"
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


def document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_bytes())
    return found


def runs(steps: list[dict[str, Any]]) -> list[str]:
    return [step["run"] for step in steps if "run" in step]


def test_every_input_is_used_and_every_input_that_is_used_is_there() -> None:
    action = document(ACTION / "action.yml")
    passed = [value for step in action["runs"]["steps"] for value in step["env"].values()]
    assert all(EXPRESSION.sub("", value) == "" for value in passed)
    used = {name for value in passed for name in EXPRESSION.findall(value)}
    assert used == {f"inputs.{name}" for name in action["inputs"]} | {"steps.install.outputs.program"}
    assert all(each.get("required") or "default" in each for each in action["inputs"].values())
    assert all(each["description"] for each in (*action["inputs"].values(), *action["outputs"].values()))


def test_every_variable_that_is_passed_is_read() -> None:
    for step in document(ACTION / "action.yml")["runs"]["steps"]:
        script = (ACTION / f"{step['id']}.sh").read_text()
        assert all(re.search(rf"\$\{{?{name}\b", script) for name in step["env"])


def test_every_output_is_written() -> None:
    written = re.findall(r"printf '(\w+)=", (ACTION / "verify.sh").read_text())
    outputs = {name: each["value"] for name, each in document(ACTION / "action.yml")["outputs"].items()}
    assert outputs == {name: f"${{{{ steps.verify.outputs.{name} }}}}" for name in written}


def test_every_step_names_its_shell() -> None:
    assert all(step["shell"] == "bash" for step in document(ACTION / "action.yml")["runs"]["steps"])


def test_no_expression_becomes_code() -> None:
    """What a workflow's caller chooses reaches scripts through the environment only."""
    workflows = [document(path) for path in sorted((ROOT / ".github/workflows").glob("*.yml"))]
    steps = [step for each in workflows for job in each["jobs"].values() for step in job["steps"]]
    scripts = runs(document(ACTION / "action.yml")["runs"]["steps"]) + runs(steps)
    assert len(scripts) > 5
    assert [script for script in scripts if EXPRESSION.search(script)] == []


def test_the_workflow_gives_only_what_the_action_takes() -> None:
    steps = document(ROOT / ".github/workflows/verify-pack.yml")["jobs"]["demo"]["steps"]
    use = next(step for step in steps if step.get("uses") == "./.github/actions/verify-pack")
    assert set(use["with"]) <= set(document(ACTION / "action.yml")["inputs"])
    assert (ROOT / use["with"]["source"]).samefile(CHECKPOINT)


# The script


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo pack, signed."""
    folder = tmp_path_factory.mktemp("action")
    program = Path(sys.executable).with_name("moe-pack")
    subprocess.run([program, "demo", folder / "pack"], capture_output=True, check=True)
    keys = keys_in(folder / "keys")
    shutil.copy(keys.public, folder / "public.pem")
    subprocess.run([program, "sign", "pack", "--key", keys.private], cwd=folder, capture_output=True, check=True)
    return folder / "pack"


def acted(pack: Path, folder: Path, **inputs: object) -> tuple[int, dict[str, str]]:
    """The script's exit code and outputs, given the inputs as action.yml passes them."""
    folder.mkdir(exist_ok=True)
    output = folder / "output"
    output.write_text("")
    *_, verify = document(ACTION / "action.yml")["runs"]["steps"]
    passed = dict.fromkeys(set(verify["env"]) - {"MOE_PACK"}, "")
    passed |= {"PACK": str(pack), **{name: str(value) for name, value in inputs.items()}}
    known = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RUNNER_TEMP": str(folder)}
    done = subprocess.run(
        [ACTION / "verify.sh"], env={**known, **passed, "GITHUB_OUTPUT": str(output)}, capture_output=True, text=True
    )
    return done.returncode, dict(line.split("=", 1) for line in output.read_text().splitlines())


def test_an_intact_pack_passes(demo: Path, tmp_path: Path) -> None:
    public = demo.with_name("public.pem")
    code, outputs = acted(demo, tmp_path, SCOPE="full", PUBLIC_KEY=public, SOURCE=CHECKPOINT, EXPERTS="0:1,2:3")
    assert (code, outputs["digest"]) == (0, pack_digest(demo))
    found = json.loads(Path(outputs["report"]).read_bytes())
    assert (found["ok"], found["scope"], "signed" in found) == (True, "full", True)
    made = json.loads(Path(outputs["reproduced"]).read_bytes())
    assert (made["ok"], made["records_compared"]) == (True, 2)


@pytest.mark.parametrize(("scope", "told"), [("quick", "quick"), ("2/5", "2/5"), ("10%", "10% by seed 0")])
def test_a_scope_is_passed_on(scope: str, told: str, demo: Path, tmp_path: Path) -> None:
    code, outputs = acted(demo, tmp_path, SCOPE=scope)
    assert code == 0
    assert json.loads(Path(outputs["report"]).read_bytes())["scope"] == told


def test_a_damaged_pack_fails_with_1_and_its_report_is_there(demo: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    shutil.copytree(demo, pack)
    layer = sorted((pack / "experts").iterdir())[0]
    content = bytearray(layer.read_bytes())
    content[5] ^= 1
    replace_file(layer, content)
    code, outputs = acted(pack, tmp_path / "out")
    assert (code, outputs["digest"]) == (1, pack_digest(demo))
    assert json.loads(Path(outputs["report"]).read_bytes())["findings"][0]["layer"] == 0


def test_a_wrong_key_and_no_pack_fail(demo: Path, tmp_path: Path) -> None:
    assert acted(demo, tmp_path, SCOPE="quick", PUBLIC_KEY=demo.with_name("pack.sig"))[0] == 3
    nothing = {"digest": "", "report": "", "reproduced": ""}
    assert acted(tmp_path / "none", tmp_path / "out") == (2, nothing)
    assert acted(demo, tmp_path / "out", PACK="") == (2, {})


def test_what_was_locked_and_calibrated_is_passed_on(demo: Path, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("moe-pack")
    lock = tmp_path / "lock.toml"
    subprocess.run([program, "lock", CHECKPOINT, "--pack", demo, "-o", lock], capture_output=True, check=True)
    given = {"SOURCE": CHECKPOINT, "SAMPLE": 2, "TRUNK": "true", "SOURCE_DIGESTS": "true", "LOCK": lock}
    code, outputs = acted(demo, tmp_path / "out", **given)
    made = json.loads(Path(outputs["reproduced"]).read_bytes())
    assert (code, made["records_compared"], made["trunk_compared"]) == (0, 2, True)
    code, outputs = acted(demo, tmp_path / "out", **given, CALIBRATION=lock)
    assert (code, outputs["reproduced"]) == (3, "")
    lock.write_text(lock.read_text().replace(pack_digest(demo), "0" * 64))
    assert acted(demo, tmp_path / "out", LOCK=lock)[0] == 1


def test_two_uses_in_one_job_keep_their_reports(demo: Path, tmp_path: Path) -> None:
    first, second = (acted(demo, tmp_path, SCOPE="quick")[1]["report"] for _ in range(2))
    assert first != second
    assert Path(first).exists()
    assert Path(second).exists()


@pytest.mark.parametrize("text", ["$(touch ran)`touch ran`' ; touch ran\" ; touch ran\ntouch ran", "--help"])
def test_inputs_are_no_code(text: str, demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert acted(folder / text, folder, SCOPE="quick")[0] == 2
    assert acted(demo, folder, SCOPE=text)[0] == 2
    assert acted(demo, folder, SCOPE="quick", PUBLIC_KEY=demo.with_name("public.pem"), SIGNATURE=text)[0] in (2, 3)
    assert acted(demo, folder, SCOPE="quick", SOURCE=CHECKPOINT, EXPERTS=text)[0] == 2
    assert not any("ran" in path.name for path in [*tmp_path.rglob("*"), *Path.cwd().glob("ran")])
