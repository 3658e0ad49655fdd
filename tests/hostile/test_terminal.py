"""Text from packs, checkpoints and locks reaches terminals and logs escaped: no line of its own, no command.

GitHub's runner obeys a line that begins with `::` and one that holds `##[`; a terminal obeys ESC.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from checkpoints import CheckpointMaker, Variant
from tinypack import build, edit_manifest, tiny_plan

import moepack.convert.cli as moe_pack
import moepack.runtime.cli as moe_run

COMMAND = "\n::error title=pwned::forged"
HOSTILE = {
    "a workflow's command": f"a{COMMAND}",
    "a workflow's older command": "a##[error]pwned",
    "a line of ours": "a\nresult  intact: every byte is what the manifest says",
    "an escape": "a\x1b[2J\x1b]0;pwned\x07",
    "an escape of 8 bits": "a\x9b2J",
    "other ends of lines": "a\r::error::b\x85::error::c\u2028::error::d",
    "another direction": "a\u202egnp.exe",
}
Shown = Callable[..., tuple[int, str]]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    """A command's exit code and all that it wrote."""

    def run(module: ModuleType, *arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            module.main()
        except SystemExit as leaving:
            code = leaving.code or 0
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    build(tmp_path / "pack", tiny_plan(tmp_path))
    return tmp_path / "pack"


def require_tame(text: str) -> None:
    lines = text.split("\n")
    assert "Traceback" not in text
    assert "##[" not in text
    assert not [line for line in lines if line.lstrip().startswith("::")], text
    assert sum(line.startswith("result") for line in lines) <= 1, text
    assert all(each.isprintable() for each in lines), text


@pytest.mark.parametrize("case", HOSTILE)
def test_a_stray_file_names_itself_tamely(case: str, pack: Path, shown: Shown) -> None:
    (pack / HOSTILE[case]).touch()
    code, text = shown(moe_pack, "verify", pack)
    require_tame(text)
    assert code == 1
    assert "findings: 1" in text
    assert "intact: every byte" not in "\n".join(line for line in text.split("\n") if line.startswith("result"))


def test_a_name_that_is_no_text_is_told(pack: Path, shown: Shown) -> None:
    (Path(os.fsdecode(os.fsencode(pack) + b"/a\xff"))).touch()
    code, text = shown(moe_pack, "verify", pack)
    require_tame(text)
    assert code == 1
    assert "a\\udcff does not belong" in text


@pytest.mark.parametrize("case", HOSTILE)
def test_a_source_is_told_tamely(case: str, pack: Path, tmp_path: Path, shown: Shown) -> None:
    def edit(fields: Any) -> None:
        fields["source"].update(repository=HOSTILE[case], revision=HOSTILE[case])
        fields["source"]["files"][0]["name"] = HOSTILE[case]

    other = tmp_path / "other"
    shutil.copytree(pack, other)
    edit_manifest(other, edit)
    inspected, compared, run = (
        shown(moe_pack, "inspect", other),
        shown(moe_pack, "diff", pack, other),
        shown(moe_run, "doctor", other),
    )
    for _, text in (inspected, compared, run):
        require_tame(text)
    assert (inspected[0], compared[0]) == (0, 1)
    assert "source" in compared[1]


@pytest.mark.parametrize("field", ["family", "recipe.method", "formats"])
def test_a_name_that_is_refused_is_told_tamely(field: str, pack: Path, shown: Shown) -> None:
    def edit(fields: Any) -> None:
        if field == "family":
            fields["model"]["family"] = f"a{COMMAND}"
        elif field == "formats":
            fields["trunk"]["formats"]["lm_head"] = f"a{COMMAND}"
        else:
            fields["recipe"]["method"] = f"a{COMMAND}"

    edit_manifest(pack, edit)
    for module, command in ((moe_pack, "inspect"), (moe_pack, "verify"), (moe_run, "doctor")):
        _, text = shown(module, command, pack)
        require_tame(text)


def test_what_a_checkpoint_is_compared_with_is_told_tamely(
    make_checkpoint: CheckpointMaker, tmp_path: Path, shown: Shown
) -> None:
    source, pack, lock = make_checkpoint(Variant()), tmp_path / "pack", tmp_path / "a.toml"
    assert shown(moe_pack, "build", source, pack, "--expert-format", "affine2-g32", "--method", "minmax")[0] == 0
    assert shown(moe_pack, "lock", source, "--out", lock, "--pack", pack)[0] == 0
    name = json.dumps(HOSTILE["a workflow's command"])
    lock.write_text(lock.read_text().replace('"model.safetensors"', name).replace('"config.json"', name))

    def edit(fields: Any) -> None:
        fields["source"]["files"][0]["name"] = HOSTILE["a workflow's command"]

    edit_manifest(pack, edit)
    (pack / HOSTILE["a line of ours"]).touch()
    for arguments, expected in (
        (("reproduce", pack, "--source", source, "--sample", "1"), 1),
        (("repair", pack, "--source", source), 1),
        (("build", source, tmp_path / "other", "--lock", lock), 1),
        (("verify", pack, "--lock", lock), 1),
    ):
        code, text = shown(moe_pack, *arguments)
        require_tame(text)
        assert (code, "pwned" in text or "does not belong" in text or "digest" in text) == (expected, True), text
