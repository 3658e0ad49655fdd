"""The way out of every command: exit codes that cannot be mistaken for one another."""

import pytest
import typer

from moepack.manifests import command
from moepack.manifests.errors import MismatchError, UsageError


def application(error: BaseException | None) -> typer.Typer:
    app = command.application("test", "A test.", "")

    @app.command()
    @command.reported
    def work() -> None:
        if error is not None:
            raise error

    return app


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (MismatchError("bytes differ"), 1),
        (UsageError("no"), 2),
        (typer.Exit(5), 5),
        (PermissionError(13, "Permission denied", "file"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_outcome_has_its_exit_code(
    error: BaseException | None, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["test", "work"])
    with pytest.raises(SystemExit) as left:
        command.main(application(error))
    assert left.value.code == code
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError("a defect"), MemoryError(), RuntimeError("a defect")])
def test_a_defect_does_not_look_like_differing_bytes(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["test", "work"])
    with pytest.raises(SystemExit) as left:
        command.main(application(error))
    assert left.value.code == 70
    assert f"{type(error).__name__}" in capsys.readouterr().err.splitlines()[-1]
