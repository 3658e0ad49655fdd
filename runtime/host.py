"""What the operating system tells about this process and its files: memory, storage traffic, cached pages.

Each answer is None (or False) where a system does not say; nobody guesses.
"""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

Protection = Literal["locked", "no swap", "may be swapped"]


def peak_resident() -> int:
    """The most bytes this process ever had resident.

    Linux says so in /proc; elsewhere getrusage does, which may count the process that this one was forked from.
    """
    if (own := _number(Path("/proc/self/status"), r"^VmHWM:\s+(\d+) kB$")) is not None:
        return own * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, everyone else KiB


def storage_read() -> int | None:
    """Bytes this process made the storage deliver so far, page-cache hits excluded; Linux only."""
    return _number(Path("/proc/self/io"), r"^read_bytes: (\d+)$")


def drop_cached(files: Iterable[Path]) -> bool:
    """Ask the system to forget its cached pages of `files`; False where it cannot be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in files:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True


def memory_total() -> int:
    """Bytes of memory in this machine."""
    if (linux := _number(Path("/proc/meminfo"), r"^MemTotal:\s+(\d+) kB$")) is not None:
        return linux * 1024
    return int(subprocess.run(["sysctl", "-n", "hw.memsize"], capture_output=True, text=True, check=True).stdout)


def memory_free() -> int:
    """Bytes that could be made available now; on macOS all there are, for it has no figure for the former."""
    free = _number(Path("/proc/meminfo"), r"^MemAvailable:\s+(\d+) kB$")
    return memory_total() if free is None else free * 1024


def protection(size: int, meminfo: Path = Path("/proc/meminfo")) -> Protection:
    """What keeps `size` bytes of anonymous memory from being moved to disk: a lock, if the limit allows one."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY or limit >= size:
        return "locked"
    return "no swap" if _number(meminfo, r"^SwapTotal:\s+(\d+) kB$") == 0 else "may be swapped"


def _number(file: Path, pattern: str) -> int | None:
    """The number in a line of a file of the system; None where there is no such file or line."""
    try:
        match = re.search(pattern, file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match else None
