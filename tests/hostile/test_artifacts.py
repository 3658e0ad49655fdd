"""Every hostile artifact through the real command lines: the sentence, the rule's number and the exit code."""

import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from artifacts import ARTIFACTS, SOUND
from tinypack import build, tiny_plan

import moepack.convert.cli as moe_pack
import moepack.runtime.cli as moe_run

SPECIFICATION = Path(__file__).parents[2] / "FORMAT.md"
# What codes mean, and what writers do: nothing in a pack can break these.
UNTOUCHED_BY_BYTES = {"F4", "W1", "W2", "W3", "W4"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    build(folder / "pack", tiny_plan(folder))
    return folder / "pack"


@pytest.fixture
def pack(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "pack")
    return tmp_path / "pack"


class Commands:
    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, module: ModuleType, *arguments: object) -> tuple[int, str]:
        self._monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        code: object = 0
        try:
            module.main()
        except SystemExit as leaving:
            code = leaving.code or 0
        captured = self._capsys.readouterr()
        assert isinstance(code, int)
        return code, captured.err + captured.out


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(capsys, monkeypatch)


@pytest.mark.parametrize("case", ARTIFACTS)
def test_a_hostile_pack_is_refused(case: str, pack: Path, command: Commands) -> None:
    artifact = ARTIFACTS[case]
    artifact.edit(pack)
    opened = [command(moe_pack, "inspect", pack)]
    if artifact.opens:  # the tiny pack is no whole model, which is all that doctor finds wrong with a sound one
        opened.append(command(moe_run, "doctor", pack))
    for code, text in opened:
        assert code == artifact.opens, text
        if code:
            sentence = text.strip().splitlines()[-1]
            assert sentence.startswith("error: "), text
            assert text.count("error: ") == 1
            assert sentence.endswith(f"({artifact.rule})"), sentence
    code, text = command(moe_pack, "verify", pack)
    assert code == artifact.verifies, text
    assert artifact.says in (text + "".join(each for _, each in opened)).replace("\n", " ")
    assert "Traceback" not in text


@pytest.mark.parametrize("case", SOUND)
def test_what_lies_just_within_a_rule_is_accepted(case: str, pack: Path, command: Commands) -> None:
    _, edit = SOUND[case]
    edit(pack)
    code, text = command(moe_pack, "inspect", pack)
    assert code == 0, text


def test_every_rule_has_an_artifact() -> None:
    rules = set(re.findall(r"^- \*\*([A-Z]\d+)\*\*", SPECIFICATION.read_text(), re.MULTILINE))
    assert rules - UNTOUCHED_BY_BYTES == {artifact.rule for artifact in ARTIFACTS.values()}
    assert len(ARTIFACTS) >= 60
