"""`make matrix`: the golden packs, built wherever this machine can, each on a line with its digest.

Writes docs/reproducibility.md's table. A cell that cannot be run is told with the reason, and never filled in; ends
with 1 if any digest is not the kept one. NAMES of cells as arguments run only those, and write nothing.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages import LIBRARIES, PLACE, ROOT, environment, stage
from userland import unpack, wheels

PAGE = ROOT / "docs/reproducibility.md"
KEPT = json.loads(next((ROOT / "tests/golden").glob("v*/digests.json")).read_text())
X86, ARM = "qemu-x86_64-static", "qemu-aarch64-static"
FROM = {X86: "qemu-user-static", ARM: "qemu-user-static", "clang++-19": "clang-19", "g++": "g++", "cmake": "cmake"}
FROM |= {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "apt-get": "apt", "dpkg-deb": "dpkg"}
RUNS = (("--jobs", "1,2,8"), ("--jobs", "2", "--kill"))
EMULATED_RUNS = (("--jobs", "8"), ("--jobs", "1", "--kill"))  # some thirty times as slow


@dataclass(frozen=True)
class Cell:
    """One machine, compiler and set of libraries; `model` is an emulated processor's; no `isa` is the best it has."""

    name: str
    compiler: str
    libraries: str = "pinned"
    isa: str = ""
    emulator: str = ""
    model: str = ""
    needs: tuple[str, ...] = field(default=())

    @property
    def missing(self) -> list[str]:
        """Programs that it needs and that are not there."""
        tools = [tool for tool in ("cmake", self.compiler, self.emulator, *self.needs) if tool]
        return [tool for tool in tools if shutil.which(tool) is None]


def x86(name: str, compiler: str, **more: str) -> Cell:
    """A cell of the machine's own processor family."""
    return Cell(name, compiler, **more)  # type: ignore[arg-type]


def arm(name: str, compiler: str, model: str) -> Cell:
    """A cell of an emulated arm64 processor."""
    return Cell(name, compiler, emulator=ARM, model=model, needs=("apt-get", "dpkg-deb", "aarch64-linux-gnu-g++"))


CELLS = [
    *(
        x86(f"{compiler} {isa}", compiler, isa=isa)
        for compiler in ("g++", "clang++-19")
        for isa in ("baseline", "avx2", "avx512")
    ),
    x86("oldest libraries", "g++", libraries="oldest"),
    x86("newest libraries", "g++", libraries="newest"),
    x86("Core 2", "g++", libraries="oldest", emulator=X86, model="core2duo"),
    x86("Nehalem", "g++", emulator=X86, model="Nehalem"),
    x86("Nehalem, clang", "clang++-19", emulator=X86, model="Nehalem"),
    x86("Haswell", "g++", emulator=X86, model="Haswell"),
    arm("Cortex-A53", "aarch64-linux-gnu-g++", "cortex-a53"),
    arm("Cortex-A53, clang", "clang++-19", "cortex-a53"),
    arm("arm64, all that qemu has", "aarch64-linux-gnu-g++", "max"),
]


@cache
def staged(compiler: str, emulated_arm: bool) -> Path:
    """The stage of a compiler, built once."""
    settings = [f"CMAKE_CXX_COMPILER={compiler}"]
    if emulated_arm:
        headers = userland() / "usr/include/python3.11"
        settings += ["CMAKE_SYSTEM_NAME=Linux", "CMAKE_SYSTEM_PROCESSOR=aarch64", f"Python_INCLUDE_DIR={headers}"]
        settings += [f"CMAKE_CXX_FLAGS=-idirafter {userland() / 'usr/include'}"]
        settings += ["CMAKE_CXX_COMPILER_TARGET=aarch64-linux-gnu"] if "clang" in compiler else []
    return stage(f"{compiler}{'-arm' if emulated_arm else ''}", settings)


@cache
def userland() -> Path:
    """The root of the arm64 userland."""
    return unpack(PLACE / "arm64")


@cache
def arm_libraries() -> Path:
    """The folder with the wheels for arm64."""
    folder = PLACE / "arm64/wheels"
    if not folder.exists():
        wheels([environment("tools", []), "-m", "pip"], folder, LIBRARIES["pinned"])
    return folder


def prepared(cell: Cell) -> tuple[list[str], dict[str, str]]:
    """The command that is the cell's Python, and its environment. Raises CalledProcessError."""
    on_arm = cell.emulator == ARM
    paths = [staged(cell.compiler, on_arm), ROOT / "tests"]
    if on_arm:
        paths.append(arm_libraries())
        python = [cell.emulator, "-L", str(userland()), "-cpu", cell.model, str(userland() / "usr/bin/python3.11")]
    else:
        own = str(environment(cell.libraries, LIBRARIES[cell.libraries]))
        python = [cell.emulator, "-cpu", cell.model, own] if cell.emulator else [own]
    env = os.environ | {"PYTHONPATH": ":".join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
    return python, env | ({"MOEPACK_ISA": cell.isa} if cell.isa else {})


def run(python: list[str], env: dict[str, str], runs: tuple[tuple[str, ...], ...]) -> list[dict[str, Any]]:
    """Every pack that a cell's Python built: what it ran on, and its digest. Raises CalledProcessError."""
    found = []
    for options in runs:
        with TemporaryDirectory(dir=PLACE) as scratch:
            command = [*python, "-m", "golden.again", f"{scratch}/work", *options]
            done = subprocess.run(command, env=env, cwd=scratch, check=True, capture_output=True, text=True)
        machine, *packs = map(json.loads, done.stdout.splitlines())
        found += [machine | pack for pack in packs]
    return found


def lines(cell: Cell, built: list[dict[str, Any]]) -> Iterator[str]:
    """Rows of the table: those of one digest together, but never what was killed with what was not."""
    key = lambda one: (one["killed"], one["jobs"])  # noqa: E731
    rows = [(*one, _digests(list(packs))) for one, packs in groupby(sorted(built, key=key), key)]
    for (killed, digests), same in groupby(rows, lambda row: (row[0], row[2])):
        jobs = ", ".join(str(row[1]) for row in same)
        how = "killed and resumed" if killed else "at once"
        yield f"| {_machine(cell, built[0])} | {jobs} | {how} | {' | '.join(digests)} |"


def _digests(packs: list[dict[str, Any]]) -> tuple[str, str, str]:
    """Of one run: the golden pack's, all packs' together, and how many are as kept."""
    found = {one["pack"]: one["digest"] for one in packs}
    equal = sum(found[name] == KEPT[name] for name in found)
    return f"`{found['golden'][:16]}`", f"`{together(found)[:16]}`", f"{equal} of {len(KEPT)}"


def together(digests: dict[str, str]) -> str:
    """One digest of all packs': SHA-256 of theirs, a line each."""
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in KEPT).encode()).hexdigest()


def _machine(cell: Cell, one: dict[str, Any]) -> str:
    place = f"{one['machine']}, qemu `{cell.model}`" if cell.emulator else one["machine"]
    isa = "baseline (NEON)" if one["machine"] == "aarch64" else one["isa"]
    libraries = "" if cell.libraries == "pinned" else f" ({cell.libraries})"
    return f"{place} | {isa} | {_version(cell.compiler)} | {one['python']} | {one['numpy']}{libraries}"


@cache
def _version(compiler: str) -> str:
    told = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    number = re.search(r"\d+\.\d+\.\d+", told)
    return f"{'clang' if 'clang' in compiler else 'gcc'} {number[0] if number else '?'}"


class MissingError(Exception):
    """What a cell needs is not there and could not be had; the text says what."""


def attempted(cell: Cell) -> list[dict[str, Any]]:
    """What the cell built. Raises MissingError if it cannot be run here, CalledProcessError if it ran and failed."""
    if cell.missing:
        names = ", ".join(f"{tool} (package {FROM.get(tool, tool)})" for tool in cell.missing)
        raise MissingError(f"not installed: {names}")
    try:
        python, env = prepared(cell)
    except (OSError, StopIteration, subprocess.CalledProcessError) as error:
        raise MissingError(f"preparing it failed: {error}") from error
    return run(python, env, EMULATED_RUNS if cell.emulator else RUNS)


def table(cells: list[Cell]) -> tuple[list[str], list[str], bool, int]:
    """Rows, sentences about what was not run, whether all digests are the kept ones, and how many packs were built."""
    rows, left, good, count = [], [], True, 0
    for cell in cells:
        start = time.monotonic()
        try:
            built = attempted(cell)
        except MissingError as error:
            left.append(f"- {cell.name}: not run. {error}")
            continue
        except subprocess.CalledProcessError as error:
            print(error.stderr)
            left.append(f"- {cell.name}: **failed**")
            good = False
            continue
        good = good and all(one["digest"] == KEPT[one["pack"]] for one in built)
        count += len(built)
        new = list(lines(cell, built))
        print(*new, f"  {cell.name}: {time.monotonic() - start:.0f} s", sep="\n", flush=True)
        rows += new
    return rows, left, good, count


def main() -> int:
    """The exit code: 0 if all that was run gave the kept digests."""
    chosen = [cell for cell in CELLS if cell.name in sys.argv[1:] or len(sys.argv) == 1]
    PLACE.mkdir(parents=True, exist_ok=True)
    rows, left, good, count = table(chosen)
    if len(sys.argv) == 1:
        _write(rows, left, count)
    print(*left, f"{count} packs, {'all as kept' if good else 'NOT all as kept'}; {len(left)} cells not run", sep="\n")
    return int(not good or not rows)


def _write(rows: list[str], left: list[str], count: int) -> None:
    head = "| machine | instruction set | compiler | Python | numpy | jobs | built | golden | all seven | as kept |"
    shown = [head, re.sub(r"[^|]+", "---", head), *rows, "", f"{count} packs.", *left]
    text = PAGE.read_text()
    before, after = text.split("<!-- cells -->\n")[0], text.split("<!-- /cells -->")[1]
    PAGE.write_text(f"{before}<!-- cells -->\n" + "\n".join(shown) + f"\n<!-- /cells -->{after}")


if __name__ == "__main__":
    sys.exit(main())
