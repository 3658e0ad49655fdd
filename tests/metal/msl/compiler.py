"""Finds a clang that can compile the shim, and runs it. Knows nothing of MSL beyond its flags.

clang 16 is the first with half and bfloat on x86-64. Where none is installed, the ziglang package has one.
"""

import importlib.util
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
OLDEST = 16
NAMES = [f"clang++-{version}" for version in range(19, OLDEST - 1, -1)] + ["clang++"]
# -undef hides the host: a kernel sees Metal's macros and no others.
AS_METAL = ["-undef", "-D__METAL__=1", "-D__METAL_VERSION__=310", "-D__METAL_MACOS__=1", "-D__cplusplus=201402L"]
LANGUAGE = [
    "-std=c++17",
    "-w",
    "-nostdinc",
    "-fno-exceptions",
    "-fno-rtti",
    "-fsigned-char",
    "-fPIC",
    "-fno-sanitize=all",
]
# Sums are as written; half and bfloat are rounded after every operation, as on a GPU.
NATIVE = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
ARITHMETIC = [NATIVE, "-ffp-contract=off", "-Xclang", "-ffloat16-excess-precision=none"]
# Lines, and code that has not been optimised yet: every access is still where the source has it.
UNOPTIMISED = ["-S", "-emit-llvm", "-O1", "-Xclang", "-disable-llvm-passes"]
LINES = ["-gline-tables-only", "-fdebug-compilation-dir=/metal"]  # so that only the shim's files have full paths


class CompilerMissingError(Exception):
    """No compiler was found that could run kernels."""


class RejectedError(Exception):
    """The compiler refused its input; its words are the only argument."""


@dataclass(frozen=True)
class Compiler:
    command: tuple[str, ...]
    version: str

    def preprocess(self, source: str, macros: list[str]) -> str:
        flags = ["-E", "-nostdinc", "-w", "-isystem", str(HERE / "headers")]
        return self._output(["-x", "c++", *flags, *AS_METAL, *macros, "-"], source)

    def to_ir(self, code: str, macros: list[str]) -> str:
        shim = ["-include", str(HERE / "shim" / "msl.h"), *limits_as_macros(), *macros]
        return self._output(["-x", "c++", *LANGUAGE, *ARITHMETIC, *UNOPTIMISED, *LINES, *shim, "-"], code)

    def link(self, ir: str, to: Path, level: str) -> None:
        text = to.with_suffix(".ll")
        text.write_text(ir)
        self._run([level, NATIVE, "-w", "-fPIC", "-shared", str(text), "-o", str(to)])

    def build_runtime(self, sources: list[Path], to: Path) -> None:
        flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-pthread", *limits_as_macros()]
        self._run([*flags, *map(str, sources), "-lm", "-o", str(to)])

    def _output(self, arguments: list[str], given: str) -> str:
        """What the compiler writes to a file: not all of them write to stdout."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "output"
            self._run([*arguments, "-o", str(file)], given)
            return file.read_text()

    def _run(self, arguments: list[str], given: str = "") -> None:
        ran = subprocess.run([*self.command, *arguments], input=given, capture_output=True, text=True)
        if ran.returncode:
            raise RejectedError(ran.stderr)


def limits_as_macros() -> list[str]:
    from ..limits import MAX_THREADS, SIMD_WIDTH

    return [f"-DMSL_SIMD_WIDTH={SIMD_WIDTH}", f"-DMSL_MAX_THREADS={MAX_THREADS}"]


@cache
def find_compiler() -> Compiler:
    for command in candidates():
        version = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
        number = re.search(r"clang version (\d+)", version)
        if number and int(number[1]) >= OLDEST:
            return Compiler(tuple(command), version)
    raise CompilerMissingError(f"running .metal files needs clang {OLDEST} or newer, or the Python package ziglang")


def candidates() -> list[list[str]]:
    installed = [[path] for path in map(shutil.which, NAMES) if path]
    packaged = [[sys.executable, "-m", "ziglang", "c++"]] if importlib.util.find_spec("ziglang") else []
    return installed + packaged
