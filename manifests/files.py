"""Opening and reading files that are not trusted: regular files only, exactly the bytes asked for, or an error.

Everything in the project that reads a checkpoint or a pack reads through `read_exactly`: a short read, an I/O error
or a file that shrank after it was opened is never mistaken for data.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from .errors import CorruptInputError, StorageError

PIECE_BYTES = 4 * 1024 * 1024
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def open_regular(path: Path, *, follow_links: bool = False) -> int:
    """A read-only descriptor of the regular file `path`; the caller closes it.

    Raises CorruptInputError for a missing file, a link (unless followed), a directory, a pipe or a device, and
    StorageError when the system refuses. Opening never blocks on a pipe.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise _refusal(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptInputError(f"{path} is not a regular file")
    return descriptor


def _refusal(path: Path, error: OSError) -> CorruptInputError | StorageError:
    if error.errno == errno.ENOENT:
        return CorruptInputError(f"{path} is missing")
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return CorruptInputError(f"{path} is a symbolic link, not a regular file")
    if error.errno in (errno.ENXIO, errno.ENOTDIR):
        return CorruptInputError(f"{path} is not a regular file")
    return StorageError(f"{path} cannot be opened: {error.strerror}")


def read_exactly(descriptor: int, buffer: memoryview, offset: int, path: Path) -> None:
    """Fill `buffer` with the bytes of `path` from `offset` on. Thread-safe: the file position is not used.

    Raises StorageError naming the byte range when the device fails or the file ends early.
    """
    left = buffer
    while left:
        try:
            count = os.preadv(descriptor, [left], offset)
        except OSError as error:
            raise StorageError(f"{path} cannot be read at bytes {offset}+{len(left)}: {error.strerror}") from error
        if count == 0:
            raise StorageError(f"{path} ends at byte {offset}, {len(left)} bytes early")
        left, offset = left[count:], offset + count


def pieces(descriptor: int, offset: int, size: int, path: Path) -> Iterator[memoryview]:
    """`size` bytes of `path` from `offset` on, a few megabytes at a time, each valid until the next is asked for.

    Raises StorageError as `read_exactly` does.
    """
    buffer = memoryview(bytearray(min(size, PIECE_BYTES)))
    for done in range(0, size, PIECE_BYTES):
        piece = buffer[: size - done]
        read_exactly(descriptor, piece, offset + done, path)
        yield piece


def read_small(path: Path, limit: int, *, follow_links: bool = False) -> bytes:
    """All bytes of the regular file `path`; CorruptInputError, before reading, if it has more than `limit`."""
    descriptor = open_regular(path, follow_links=follow_links)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise CorruptInputError(f"{path} has {size} bytes; at most {limit} are allowed")
        content = bytearray(size)
        read_exactly(descriptor, memoryview(content), 0, path)
        return bytes(content)
    finally:
        os.close(descriptor)


def gigabytes(size: int) -> str:
    """A size in GB (10^9 bytes) for a sentence; small sizes stay in bytes."""
    return f"{size / 1e9:.2f} GB" if size >= 10_000_000 else f"{size} bytes"
