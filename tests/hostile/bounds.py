"""Run as a program with a parser's name: feeds it each of its documents in a child of its own.

Prints one line of JSON for each: what came of it, and by how much the child's resident memory grew at most from where
it stood after the imports. The limit of its address space is beyond the bound, and saves the machine only.
"""

import json
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import documents
import templates

from moepack.convert.calibration.file import CalibrationFile
from moepack.convert.checkpoint import Checkpoint
from moepack.convert.families import find_family
from moepack.convert.recipefile import read_recipe
from moepack.layout.tensorfile import TensorFile
from moepack.manifests.errors import MoepackError
from moepack.manifests.manifest import read_manifest
from moepack.runtime.packfiles import LooseFiles
from moepack.runtime.sampling import Sampling
from moepack.runtime.template import ChatTemplate
from moepack.runtime.tokenizer import Tokenizer

MIB = 2**20
BOUND = 64 * MIB
BEYOND = 1024 * MIB  # of the bound: where a child that takes too much is stopped
KILLED_AFTER = 20  # seconds; the bound itself is checked by the test
CHAT = [{"role": "user", "content": "Why is the sky blue?"}]


def manifest(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    read_manifest(folder)


def header(folder: Path, content: bytes) -> None:
    with (folder / "x.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little"))
        file.write(content)
    TensorFile.open(folder / "x.safetensors").close()


def index(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors.index.json").write_bytes(content)
    Checkpoint.open(str(folder)).close()


def config(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    with Checkpoint.open(str(folder)) as checkpoint:
        family = find_family(checkpoint.config)
        family.geometry(checkpoint.config)


def small(folder: Path, content: bytes) -> None:
    (folder / "generation_config.json").write_bytes(content)
    Sampling.from_config(LooseFiles(folder).json("generation_config.json"), "generation_config.json")


def calibration(folder: Path, content: bytes) -> None:
    (folder / "c.moecal").write_bytes(content)
    CalibrationFile.open(folder / "c.moecal").close()


def recipe(folder: Path, content: bytes) -> None:
    (folder / "recipe.json").write_bytes(content)
    read_recipe(folder / "recipe.json")


def toml(folder: Path, content: bytes) -> None:
    (folder / "recipe.toml").write_bytes(content)
    read_recipe(folder / "recipe.toml")


def tokenizer(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    Tokenizer.open(LooseFiles(folder), 300_000).encode("Why is the sky blue? " * 10, add_special_tokens=True)


def template(folder: Path, content: bytes) -> None:
    (folder / "chat_template.jinja").write_bytes(content)
    opened = ChatTemplate.open(LooseFiles(folder), {})
    assert opened
    print(opened.render(CHAT)[:200], file=sys.stderr)


PARSERS: dict[str, tuple[Callable[[Path, bytes], None], dict[str, documents.Made], int]] = {
    "manifest": (manifest, documents.JSON, BOUND),
    "header": (header, {**documents.JSON, **documents.HEADER}, BOUND),
    "index": (index, {**documents.JSON, **documents.INDEX}, BOUND),
    "config": (config, documents.JSON, BOUND),
    "small": (small, documents.JSON, BOUND),
    "calibration": (calibration, documents.CALIBRATION, BOUND),
    "recipe": (recipe, documents.JSON, BOUND),
    "toml": (toml, documents.TOML, BOUND),
    "tokenizer": (tokenizer, documents.TOKENIZER, 512 * MIB),  # see docs/security.md
    "template": (template, templates.HUNGRY, BOUND),
}


def in_child(use: Callable[[Path, bytes], None], made: documents.Made, bound: int) -> dict[str, Any]:
    with tempfile.TemporaryFile() as document, tempfile.TemporaryDirectory() as folder:
        forked(lambda: save(document, made()))  # in a child too: what making it takes is not counted
        told = forked(lambda: json.dumps(run(use, document, Path(folder), bound)).encode())
    return json.loads(told) if told else {"error": "died", "message": "", "code": None, "ours": False}


def save(document: BinaryIO, content: bytes) -> None:
    document.write(content)
    document.flush()


def forked(work: Callable[[], bytes | None]) -> bytes:
    """What `work` gives in a child."""
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, work() or b"")
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as report:
        told = report.read()
    os.waitpid(child, 0)
    return told


def run(use: Callable[[Path, bytes], None], document: BinaryIO, folder: Path, bound: int) -> dict[str, Any]:
    content = os.pread(document.fileno(), os.fstat(document.fileno()).st_size, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + KILLED_AFTER,) * 2)
    limit = memory("VmSize") + bound + BEYOND
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")  # the most that was resident is what is resident now
    before, start, outcome = memory("VmHWM"), time.process_time(), {"error": None, "message": "", "code": 0}
    try:
        use(folder, content)
    except BaseException as error:
        outcome = {"error": type(error).__name__, "message": str(error), "code": getattr(error, "exit_code", None)}
        outcome["ours"] = isinstance(error, MoepackError)
        outcome["ran_out"] = any(isinstance(each, MemoryError) for each in behind(error))
    seconds = time.process_time() - start
    return {**outcome, "seconds": seconds, "grown": memory("VmHWM") - before, "bound": bound}


def behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that it was raised from, or during."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def memory(what: str) -> int:
    """VmSize, the address space now, or VmHWM, the most that was ever resident: bytes."""
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    use, cases, bound = PARSERS[sys.argv[1]]
    for name, made in cases.items():
        print(json.dumps({"case": name, **in_child(use, made, bound)}), flush=True)
