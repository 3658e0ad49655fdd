"""What `make quality` keeps is what its commands, on their files as they are, would give again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

FOLDER = Path(__file__).parent / "extended" / "quality"
TEXT = "text.txt"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bench of one subject, whose commands write what they were told, and are listed as `bench.ran`."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import figures
    import subjects

    (tmp_path / "checkpoint").mkdir()
    for name in (TEXT, "tools.jsonl", "checkpoint/config.json"):
        (tmp_path / name).write_text(name)
    files = (tmp_path / "tools.jsonl", tmp_path / TEXT)
    subject = subjects.Subject("it", tmp_path / "checkpoint", {"text": tmp_path / TEXT}, *files, 2)

    class Bench(figures.Bench):
        ran: ClassVar[list[str]] = []

    def run(*command: object, capture: bool = False) -> str:
        words = list(map(str, command))
        Bench.ran.append(words[1])
        target = Path(words[words.index("-o") + 1] if "-o" in words else words[3])
        if words[1] == "build":
            target.mkdir()
            target = target / "manifest.json"
        if not capture:
            target.write_text(" ".join(words))
        return '{"packs": [], "weights": {}}'

    monkeypatch.setattr(figures, "run", run)
    return Bench(subject, tmp_path, 100)


@pytest.fixture
def recipe(bench: Any) -> Any:
    import subjects

    return subjects.uniform("book2-g8", "gptq")


def scored(bench: Any, recipe: Any, *options: object) -> list[str]:
    """The commands that were run to score a recipe's pack."""
    bench.ran.clear()
    bench.calibrate()
    bench.build(recipe)
    bench.score("text", (recipe,), *options, bench.subject.texts["text"], "--tools", bench.subject.tools)
    return list(bench.ran)


ALL = ["calibrate", "build", "quality"]


def test_the_same_is_not_made_again(bench: Any, recipe: Any) -> None:
    assert scored(bench, recipe, "--limit", 10) == ALL
    assert scored(bench, recipe, "--limit", 10) == []


def test_other_options_make_it_anew(bench: Any, recipe: Any) -> None:
    scored(bench, recipe, "--limit", 10)
    assert scored(bench, recipe, "--limit", 20) == ["quality"]
    other = replace(recipe, options=("--expert-format", "book2-g8", "--method", "gptq", "--trunk", "bf16"))
    assert scored(bench, other, "--limit", 20) == ["build", "quality"]
    assert "--trunk bf16" in (bench.pack(other) / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("changed", "made"),
    [("tools.jsonl", ["quality"]), (TEXT, ["calibrate", "quality"]), ("checkpoint/config.json", ALL)],
)
def test_other_files_make_it_anew(bench: Any, recipe: Any, changed: str, made: list[str]) -> None:
    scored(bench, recipe, "--limit", 10)
    (bench.place / changed).write_text("another")
    assert scored(bench, recipe, "--limit", 10) == made
    assert scored(bench, recipe, "--limit", 10) == []


def test_a_pack_of_another_calibration_is_made_anew(bench: Any, recipe: Any) -> None:
    scored(bench, recipe, "--limit", 10)
    bench.calibration.write_text("another")
    bench.ran.clear()
    bench.build(recipe)
    assert bench.ran == ["build"]


def test_what_was_interrupted_is_made_again(bench: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import figures

    run: Callable[..., str] = figures.run
    scored(bench, recipe, "--limit", 10)

    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scored(bench, recipe, "--limit", 20)
    monkeypatch.setattr(figures, "run", run)
    assert scored(bench, recipe, "--limit", 20) == ["quality"]


def test_other_code_is_said(
    bench: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import kept

    monkeypatch.setattr(kept, "code", lambda: "one")
    scored(bench, recipe, "--limit", 10)
    scored(bench, recipe, "--limit", 10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(kept, "code", lambda: "other")
    assert scored(bench, recipe, "--limit", 10) == []
    assert "text.json is kept; it was made by one, and this is other" in capsys.readouterr().err
