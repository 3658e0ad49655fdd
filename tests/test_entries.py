"""The console scripts before their command line is there."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest


class Interrupted(ModuleType):
    """A module during whose import somebody presses Ctrl-C."""

    def __getattr__(self, name: str) -> Any:
        raise KeyboardInterrupt


@pytest.mark.parametrize("room", ["runtime", "convert"])
def test_an_interrupt_while_modules_are_imported_is_no_traceback(
    room: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, f"moepack.{room}.cli", Interrupted("cli"))
    with pytest.raises(SystemExit) as left:
        import_module(f"moepack.{room}.__main__").main()
    assert left.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"
