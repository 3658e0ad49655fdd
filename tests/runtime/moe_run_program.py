"""moe-run as its tests call it: the console script, or the function behind it; and packs of the shipped model."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from packs import build_with

from moepack.convert.recipe import Recipe
from moepack.runtime.cli import main

MOE_RUN = str(Path(sys.executable).parent / "moe-run")


def moe_run(*arguments: object, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    """The console script, in a process of its own."""
    command = [MOE_RUN, *map(str, arguments)]
    run = subprocess.run(command, input=stdin, capture_output=True, timeout=120, env={**os.environ, **environment})
    assert b"Traceback" not in run.stderr
    return subprocess.CompletedProcess(command, run.returncode, run.stdout.decode(), run.stderr.decode())


def called(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """The same function that the console script calls, in this process: for the many cases where that is enough."""
    command = ["moe-run", *map(str, arguments)]
    streams = [io.TextIOWrapper(io.BytesIO(content), "utf-8") for content in (stdin, b"", b"")]
    code = 0
    with mock.patch.multiple(sys, argv=command, stdin=streams[0], stdout=streams[1], stderr=streams[2]):
        try:
            main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    texts = []
    for stream in streams[1:]:
        stream.seek(0)
        texts.append(stream.read())
    return subprocess.CompletedProcess(command, code, *texts)


def document(*arguments: object) -> dict[str, Any]:
    """What a command prints with --json."""
    run = called(*arguments, "--json")
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def refusal(code: int, *arguments: object, stdin: bytes = b"") -> str:
    """The one sentence on stderr of a command that must leave with `code` and print nothing.

    Before it, only the memory budget may have been stated.
    """
    run = called("generate", *arguments, stdin=stdin)
    assert (run.returncode, run.stdout) == (code, ""), run.stderr
    *notes, sentence = run.stderr.splitlines()
    assert all(note.startswith("memory: at most") for note in notes)
    assert sentence.startswith("error: ")
    return sentence


def built(target: Path, checkpoint: Path) -> Path:
    build_with(checkpoint, target, Recipe())  # as moe-pack demo does
    return target


def started(pack: Path, *arguments: str, prompt: tuple[str, ...] = ("-p", "Once")) -> subprocess.Popen[bytes]:
    """A run that would take long: greedy, it never leaves its repetition; and one slot makes every token slow."""
    slow = ("-n", "4000", "--temp", "0", "-K", "3", "--slots", "1", "--threads", "1")
    command = [MOE_RUN, "generate", str(pack), "--raw", *prompt, *slow, *arguments]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, bufsize=0, **streams)  # type: ignore[call-overload, no-any-return]


def flip(file: Path, *places: int) -> None:
    """Change one bit in each of these bytes."""
    content = bytearray(file.read_bytes())
    for place in places:
        content[place] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
