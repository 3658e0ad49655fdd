"""What the operating system tells about this process and its files: memory, storage traffic, cached pages.

Each answer is None (or False) where a system does not say; nobody guesses.
"""

import os
import re
import resource
import sys
from collections.abc import Iterable
from pathlib import Path


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


def _number(file: Path, pattern: str) -> int | None:
    """The number in a line of a file of the system; None where there is no such file or line."""
    try:
        match = re.search(pattern, file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match else None
