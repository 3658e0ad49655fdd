"""A copy of the working tree in which tests can be run with one file changed, while the tree itself stays as it is."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from extended.mutants.mutant import Mutant, Tests

ROOT = Path(__file__).parents[3]
PLACE = ROOT / "build" / "mutants"
OVERLAY = Path(__file__).parent / "overlay"
NATIVE = ("moepack.runtime._native", "moepack.quantize._native")
ALWAYS = ("tests/metal/msl/", "tests/metal/fake/", "runtime/kernels/metal/")  # are read, not only imported
BASELINE_LIMIT = 600.0
COMPILER = "the compiler"  # as what failed: the stand-in refused to compile a kernel
_FAILED = re.compile(r"^(?:FAILED|ERROR) (?P<test>\S+::.+?|\S+)(?: - (?P<what>.*))?$", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What a run of tests came to: the first that failed, or why they ended otherwise; None if all passed."""

    failed: str | None
    why: str
    seconds: float


class Tree:
    """The copy. Machine code of kernels is kept beside it, for all runs."""

    def __init__(self, name: str) -> None:
        self.root = PLACE / name
        self._files = [file for file in _listed() if os.path.lexists(ROOT / file)]
        shutil.rmtree(self.root, ignore_errors=True)
        for file in self._files:
            (self.root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, self.root / file, follow_symlinks=False)
        for name in NATIVE:
            spec = importlib.util.find_spec(name)
            assert spec is not None, f"{name} is not built"
            shutil.copy2(str(spec.origin), self.root / name.split(".")[1])
        self._check()

    @contextmanager
    def mutated(self, mutant: Mutant) -> Iterator[None]:
        """The tree with a mutant's fault in it."""
        path = self.root / mutant.file
        text = path.read_text()
        path.write_text(mutant.applied(text))
        try:
            yield
        finally:
            path.write_text(text)

    def digest(self, files: Iterable[str]) -> str:
        """Of files of the tree, of what compiles and runs kernels, and of the kernels."""
        digest = hashlib.sha256()
        for file in sorted({*files, *(file for file in self._files if file.startswith(ALWAYS))}):
            digest.update(f"{file}\0".encode() + (self.root / file).read_bytes())
        return digest.hexdigest()

    def imported(self, tests: Tests) -> tuple[Outcome, list[str]]:
        """Runs tests, and tells which files of the tree they imported."""
        with tempfile.NamedTemporaryFile("r") as told:
            outcome = self.run(tests, BASELINE_LIMIT, {"MOEPACK_IMPORTED": told.name})
            paths = {Path(line) for line in told.read().splitlines()}
        inside = {str(path.relative_to(self.root)) for path in paths if path.is_relative_to(self.root)}
        return outcome, sorted(inside & set(self._files))

    def run(self, tests: Tests, limit: float, more: Mapping[str, str] | None = None) -> Outcome:
        """Runs tests until one fails, for at most `limit` seconds."""
        command = [sys.executable, "-m", "pytest", "-x", "-rfE", "--tb=short", "-p", "no:cacheprovider", *tests]
        began = time.monotonic()
        with tempfile.TemporaryFile("w+") as output:
            environment = self._environment() | dict(more or {})
            ran = subprocess.Popen(
                command, cwd=self.root, env=environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                code: int | None = ran.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(ran)
            output.seek(0)
            return Outcome(*_reason(code, output.read(), limit), time.monotonic() - began)

    def _environment(self) -> dict[str, str]:
        paths = os.pathsep.join(map(str, (OVERLAY, self.root / "src", self.root / "tests")))
        more = {
            "PYTHONPATH": paths,
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_CACHE_HOME": str(PLACE / "cache"),
            "COLUMNS": "300",
        }
        return os.environ | more

    def _check(self) -> None:
        """Tests of the copy must not meet the tree it is a copy of."""
        ask = "import moepack.runtime._native as native; print(native.__file__)"
        told = subprocess.run([sys.executable, "-c", ask], env=self._environment(), capture_output=True, text=True)
        assert told.stdout.startswith(str(self.root)), f"tests would run {told.stdout or told.stderr}"


def _listed() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """With what it started; nothing if all of that has ended."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def _reason(code: int | None, output: str, limit: float) -> tuple[str | None, str]:
    if code is None:
        return "the time limit", f"{limit:.0f} s"
    if code == 0:
        return None, ""
    if "CompileError: " in output:
        return COMPILER, output.partition("CompileError: ")[2].splitlines()[0]
    found = _FAILED.search(output)
    if found is None:
        return f"the process's end with {code}", next(iter(output.strip().splitlines()[-1:]), "")
    return found["test"], found["what"] or ""
