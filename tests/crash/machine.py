"""Runs of the real `moe-pack` in processes of their own, to each of which something is done at a chosen call.

`Machine` holds a server (forks.py) under the preloaded injector (inject.c); `available` says why there can be none.
"""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "NO_COLOR": "1",
    "COLUMNS": "1000",
    "TMPDIR": "/nonexistent",  # what is published must not have been somewhere else before
}


class Action(IntEnum):
    """What happens at the chosen call, as inject.c counts them."""

    COUNT = 0
    KILL = 1  # before it
    HALF = 2  # after half of a write
    SHORT = 3  # half of a write is done and said to be done
    STOP = 4  # SIGSTOP, before it
    FAIL = 5
    FAIL_FROM_HERE = 6  # a full disk refuses what needs room, a dead one everything


@dataclass(frozen=True)
class Fault:
    """Something that happens at call number `at`."""

    action: Action = Action.COUNT
    at: int = 0
    error: int = 0

    def __str__(self) -> str:
        name = f" {errno.errorcode[self.error]}" if self.error else ""
        return f"{self.action.name}{name} at call {self.at}"


NONE = Fault()


@dataclass(frozen=True)
class Run:
    """How a run ended: its exit code (negative for a signal), or None if it is stopped; and what it said."""

    process: int
    code: int | None
    err: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def sentence(self) -> str:
        """The one sentence of an error."""
        _, *found = re.split("^error: ", self.err, flags=re.MULTILINE)
        assert len(found) == 1, self.err
        assert "Traceback" not in self.err, self.err
        return str(found[0]).strip()


def reason_for_none() -> str:
    """Why no injector can be had here, or nothing."""
    if sys.platform != "linux":
        return "the injector is preloaded by Linux's loader"
    return "" if shutil.which("cc") else "the injector needs a C compiler"


def build_injector(folder: Path) -> Path:
    """The preloadable library, compiled into `folder`."""
    library = folder / "inject.so"
    command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, HERE / "inject.c"]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True)
    return library


@dataclass
class Machine:
    """Runs `moe-pack` in forks of a warm process; one at a time, unless one is stopped. A context manager.

    `folder` is where runs begin and their output goes; `log`, where calls are logged.
    """

    injector: Path
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> "Machine":
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **ENVIRONMENT, **self.environment, "LD_PRELOAD": str(self.injector)}
        self._server = subprocess.Popen(
            [sys.executable, HERE / "forks.py"],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    @property
    def log(self) -> Path:
        return self.folder / "calls.log"

    def warm(self, *modules: str) -> None:
        """Import in the server what a command imports only when it runs, so that not every fork does."""
        self._answer({"imports": modules})

    def run(
        self,
        *arguments: object,
        fault: Fault = NONE,
        logged: bool = False,
        kill_after: float | None = None,
        environment: dict[str, str] | None = None,
    ) -> Run:
        """`moe-pack` with these arguments, to its end, or to where it stops, with `environment` added."""
        (self.folder / "err").unlink(missing_ok=True)
        request = {
            "arguments": list(map(str, arguments)),
            "folder": str(self.folder),
            "at": fault.at,
            "action": int(fault.action),
            "error": fault.error,
            "log": str(self.log) if logged else None,
            "out": str(self.folder / "out"),
            "err": str(self.folder / "err"),
            "kill_after": kill_after,
            "environment": environment or {},
        }
        return self._ask(request)

    def go_on(self, stopped: Run, number: int = signal.SIGCONT) -> Run:
        """Send a signal to a stopped run; how it ended. No other may have run here meanwhile."""
        return self._ask({"goes_on": stopped.process, "signal": number})

    def _ask(self, request: dict[str, Any]) -> Run:
        found = self._answer(request)
        err = self.folder / "err"  # a kill may come before there is any
        return Run(found["process"], found["code"], err.read_text() if err.exists() else "")

    def _answer(self, request: dict[str, Any]) -> Any:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def run_executed(injector: Path, log: Path, *arguments: object) -> int:
    """`moe-pack` as a shell starts it, under the injector, which only logs; its exit code."""
    program = Path(sys.executable).with_name("moe-pack")
    environment = {**os.environ, **ENVIRONMENT, "LD_PRELOAD": str(injector), "CRASH_ARM": f"0,0,0,{log}"}
    return subprocess.run([program, *map(str, arguments)], env=environment, capture_output=True, check=False).returncode
