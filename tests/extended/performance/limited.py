"""Programs under a limit of memory that their page cache counts against: Linux control groups, both generations."""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moepack.runtime.host import drop_cached

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
PATIENCE = 50  # tenths of a second
SECONDS = 240  # after which a program that pages itself to death is ended


@dataclass(frozen=True)
class Ran:
    """What a program printed, and the most bytes its group ever had, page cache included."""

    printed: str
    peak: int


def unavailable() -> str | None:
    """Why no limit can be set here; None if one can."""
    controllers = V2 / "cgroup.subtree_control"
    second = controllers.exists() and "memory" in controllers.read_text().split() and os.access(V2, os.W_OK)
    if not second and not os.access(V1, os.W_OK):
        return "beyond memory: left out, for no memory control group can be made here (it takes Linux and root)"
    return None


def run(command: Sequence[str], limit: int, *, folder: Path | None = None) -> Ran:
    """Run a command in a group of its own, in `folder` or here.

    Raises subprocess.SubprocessError if it fails or takes over SECONDS.
    """
    first = V1.exists()
    group = (V1 if first else V2) / f"moepack-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
        join = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        whole = ["sh", "-c", join, "sh", *command]
        done = subprocess.run(
            whole, check=True, timeout=SECONDS, text=True, errors="replace", capture_output=True, cwd=folder
        )
        peak = int((group / ("memory.max_usage_in_bytes" if first else "memory.peak")).read_text())
        return Ran(done.stdout + done.stderr, peak)
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """The kernel lets go of a group a moment after the last process has ended."""
    for _ in range(PATIENCE):
        try:
            return group.rmdir()
        except OSError:
            time.sleep(0.1)
    group.rmdir()


def forget(file: Path) -> None:
    """Drop a file's pages, or those of all files in a folder, from the page cache."""
    os.sync()  # what is not on the disk yet cannot be dropped
    drop_cached([file] if file.is_file() else filter(Path.is_file, file.rglob("*")))
