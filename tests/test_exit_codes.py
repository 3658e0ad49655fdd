"""Exit codes: one table in manifests/errors.py, which every error of ours is in; programs and docs repeat it."""

import importlib
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import moepack
from moepack.convert import cli as moe_pack
from moepack.manifests.errors import EXIT_CODES, EXIT_CODES_SENTENCE, MoepackError
from moepack.runtime import cli as moe_run

ROOT = Path(__file__).parents[1]


def subclasses(kind: type[MoepackError]) -> list[type[MoepackError]]:
    return [each for child in kind.__subclasses__() for each in (child, *subclasses(child))]


def test_every_error_has_a_code_of_the_table() -> None:
    for module in pkgutil.walk_packages(moepack.__path__, "moepack."):
        if module.name.split(".")[1] in ("manifests", "layout") or module.name.endswith(("errors", "cli")):
            importlib.import_module(module.name)
    found = subclasses(MoepackError)
    assert len(found) >= 6
    assert {each.exit_code for each in found} == set(EXIT_CODES) - {0, 70, 130}


def test_the_table_is_the_issues() -> None:
    assert list(EXIT_CODES) == [0, 1, 2, 3, 4, 5, 70, 130]


@pytest.mark.parametrize("program", [moe_pack, moe_run], ids=["moe-pack", "moe-run"])
def test_every_help_ends_with_the_table(program: object) -> None:
    group = typer.main.get_command(program.app)  # type: ignore[attr-defined]
    assert group.epilog == EXIT_CODES_SENTENCE
    assert {command.epilog for command in group.commands.values()} == {EXIT_CODES_SENTENCE}  # type: ignore[attr-defined]


def test_the_page_has_the_table() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs/trust.md").read_text(), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == EXIT_CODES


PACKS = (  # `-`: the path of a pack
    (moe_pack, "verify -"),
    (moe_pack, "scrub - --jobs 1"),
    (moe_pack, "inspect -"),
    (moe_pack, "reproduce - --source SOURCE"),
    (moe_pack, "repair - --source SOURCE"),
    (moe_pack, "provenance - --out OUT"),
    (moe_pack, "diff - ."),
    (moe_run, "generate - --prompt hello"),
    (moe_run, "chat -"),
    (moe_run, "bench -"),
    (moe_run, "doctor -"),
    (moe_run, "serve -"),
)


@pytest.mark.parametrize(("program", "line"), PACKS, ids=[line.split()[0] for _, line in PACKS])
@pytest.mark.parametrize(("name", "code"), [("nowhere", 2), ("dangling", 2), ("empty", 3), ("file", 3)])
def test_a_pack_that_is_not_there_is_a_mistake_of_the_request_and_a_folder_that_is_none_is_not(
    program: Any, line: str, name: str, code: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from moepack.convert import proving

    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(proving, "lower_priority", lambda: ["as it was"])  # which would last
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program", *line.replace("-", name, 1).split()])
    with pytest.raises(SystemExit) as left:
        program.main()
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert left.value.code == code, sentence
    assert sentence.startswith("error: ")
    assert name in sentence
    assert {path.name for path in tmp_path.iterdir()} == {"dangling", "empty", "file"}
