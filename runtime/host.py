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
    """The most bytes this process ever had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, everyone else KiB


def storage_read() -> int | None:
    """Bytes this process made the storage deliver so far, page-cache hits excluded; Linux only."""
    try:
        match = re.search(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match else None


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
