"""Packs the golden checkpoint again by each of its recipes, and prints a line of JSON for each pack:

    PYTHONPATH=tests python -m golden.again FOLDER [--jobs 1,2,8] [--kill] [--packs golden,every-1] [--compare]

The first line says what it runs on. With --kill every build is killed under way, at a place that differs from pack to
pack, and taken up by another process. It needs no engine, and judges only with --compare: it then ends with 1 if any
digest is not the kept one.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from moepack.manifests.manifest import pack_digest
from moepack.manifests.progress import Silent
from moepack.manifests.schema import FORMAT_VERSION
from moepack.manifests.verify import verify
from moepack.quantize.methods import instruction_set

from .checkpoint import LAYERS, write_checkpoint
from .recipes import EVERY, build_by

KEPT = Path(__file__).parent / f"v{FORMAT_VERSION}"
CALIBRATION, DIGESTS = KEPT / "golden.moecal", KEPT / "digests.json"


def kept() -> dict[str, str]:
    """The digest of every golden pack, by the name of its recipe."""
    found: dict[str, str] = json.loads(DIGESTS.read_text())
    return found


class Killer:
    """A progress that kills its process when a share of the work is done."""

    def __init__(self, share: float) -> None:
        self._share, self._left = share, 0.0

    def task(self, title: str, total: int, done: int = 0, *, unit: str = "bytes") -> AbstractContextManager["Killer"]:
        self._left = self._share * total
        return nullcontext(self)

    def note(self, text: str) -> None: ...

    def advance(self, size: int) -> None:
        self._left -= size
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


def packs(folder: Path, names: list[str], jobs: list[int], *, kill: bool) -> Iterator[dict[str, Any]]:
    """What came of every build, in `folder`, which is not there before or after."""
    folder.mkdir()
    write_checkpoint(folder / "checkpoint")
    builds = [(name, threads, folder / f"{name}-{threads}") for name in names for threads in jobs]
    for build in builds if kill else []:  # all of them first: a process that has built has threads, and cannot fork
        begin(*build)
    for name, threads, target in builds:
        layers = build_by(EVERY[name], folder / "checkpoint", CALIBRATION, target, threads)
        if findings := verify(target, threads=1, progress=Silent()).findings:
            sys.exit(f"{name} is not intact: {findings[0]}")
        digest = pack_digest(target)
        yield {"pack": name, "jobs": threads, "killed": kill, "kept_layers": LAYERS - layers, "digest": digest}
    shutil.rmtree(folder)


def begin(name: str, threads: int, target: Path) -> None:
    """Begin a build in another process, which is killed: the sooner, the later its recipe stands in the list."""
    share = 1 - (1 + list(EVERY).index(name)) / (1 + len(EVERY))
    process = os.fork()
    if not process:
        build_by(EVERY[name], target.parent / "checkpoint", CALIBRATION, target, threads, Killer(share))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status != -signal.SIGKILL or target.exists():
        sys.exit(f"the build of {name} was to be killed, and ended with {status}")


def machine() -> dict[str, Any]:
    """What this process runs on, as far as it can know."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "isa": instruction_set(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--packs", default=",".join(EVERY))
    parser.add_argument("--compare", action="store_true")
    wish = parser.parse_args()
    print(json.dumps(machine()), flush=True)
    others = set()
    for found in packs(wish.folder, wish.packs.split(","), list(map(int, wish.jobs.split(","))), kill=wish.kill):
        print(json.dumps(found), flush=True)
        others |= {found["pack"]} if found["digest"] != kept()[found["pack"]] else set()
    if wish.compare and others:
        sys.exit(f"not the bytes that are kept: {', '.join(sorted(others))}")


if __name__ == "__main__":
    main()
