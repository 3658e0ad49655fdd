"""moe-run serve as a program: its libraries, its address, its end."""

import subprocess
import sys
from pathlib import Path

import pytest
from extended.soak import server

WITHOUT = "import sys; sys.modules[{name!r}] = None; from moepack.runtime.cli import main; main()"


@pytest.mark.parametrize("name", ["starlette", "uvicorn"])
def test_without_its_libraries_one_sentence_says_how_to_get_them(name: str) -> None:
    command = [sys.executable, "-c", WITHOUT.format(name=name), "serve", "pack"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (5, "")
    assert run.stderr.startswith("error: ")
    assert "pip install '.[server]'" in run.stderr


def test_it_says_where_it_listens_and_ends_with_0(tmp_path: Path) -> None:
    with server(tmp_path) as (url, _):  # which checks the exit code
        assert url.startswith("http://127.0.0.1:")
