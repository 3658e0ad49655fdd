"""A client's texts in the server's log: they command no terminal, and begin no line of their own."""

import asyncio
import logging
import warnings

import pytest
from starlette.requests import Request

from moepack.runtime.server import logbook
from moepack.runtime.server.app import _refusal

HOSTILE = "\x1b[2J\n##[error]line\r\u202e\u2028\x9b1m"
ESCAPED = r"\x1b[2J\n#\x23[error]line\r\u202e\u2028\x9b1m"


def test_a_path_and_an_error_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    scope = {"type": "http", "method": "GET", "path": f"/{HOSTILE}", "query_string": b"", "headers": [],
             "scheme": "http", "server": ("localhost", 80)}  # fmt: skip
    with logbook.kept():
        answer = asyncio.run(_refusal(Request(scope), RuntimeError(HOSTILE)))
    told = capsys.readouterr().err
    assert answer.status_code == 500
    assert told.count("\n") == 1
    assert told.startswith(r"GET /\x1b[2J")
    assert told.endswith(f": {ESCAPED}\n")
    assert told.rstrip("\n").isprintable()


@pytest.mark.parametrize("name", ["moepack.server", "uvicorn.error", "asyncio", "llguidance"])
def test_a_traceback_has_lines_after_bars_only(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with logbook.kept():
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logging.getLogger(name).exception("a defect in %s", HOSTILE)
    first, *lines = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert first == f"a defect in {ESCAPED}"
    assert all(line.startswith("| ") and line.isprintable() for line in lines)
    assert lines[0] == "| Traceback (most recent call last):"
    assert "##[" not in "".join(lines)


def test_a_warning_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with logbook.kept(), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(HOSTILE, stacklevel=1)
    told = capsys.readouterr().err
    assert ESCAPED in told
    assert told.count("\n") == 1


def test_nothing_stays_when_the_server_has_ended() -> None:
    before = list(logging.getLogger().handlers), warnings.showwarning
    with logbook.kept():
        assert (list(logging.getLogger().handlers), warnings.showwarning) != before
    assert (list(logging.getLogger().handlers), warnings.showwarning) == before
