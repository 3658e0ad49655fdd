"""How fast disks read and write: a short try of each, as long as a person waits for a plan.

What is read had its pages dropped from the cache first, where the system can do that; what is written is a nameless
file that is gone at once. A short try of a small file says little, and nobody else's load later.
"""

import os
import tempfile
import time
from pathlib import Path

from ..manifests.files import open_regular

MOST_BYTES = 256 * 1024 * 1024
MOST_SECONDS = 0.5
CHUNK_BYTES = 8 * 1024 * 1024


def reading_rate(path: Path) -> float:
    """Bytes per second from the beginning of the file `path`."""
    descriptor = open_regular(path, follow_links=True)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, MOST_BYTES, os.POSIX_FADV_DONTNEED)
        return _read(descriptor)
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> float:
    start, done = time.perf_counter(), 0
    while done < MOST_BYTES and time.perf_counter() - start < MOST_SECONDS:
        count = len(os.pread(descriptor, CHUNK_BYTES, done))
        if not count:
            break
        done += count
    return done / _since(start)


def writing_rate(folder: Path, size: int) -> float | None:
    """Bytes per second of writing up to `size` bytes in `folder`, synced; None where nothing may be written."""
    chunk = os.urandom(min(size, CHUNK_BYTES))
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            start = time.perf_counter()
            while file.tell() < min(size, MOST_BYTES) and time.perf_counter() - start < MOST_SECONDS:
                file.write(chunk)
                os.fsync(file.fileno())
            return file.tell() / _since(start)
    except OSError:
        return None


def _since(start: float) -> float:
    return max(time.perf_counter() - start, 1e-9)
