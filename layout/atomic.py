"""Publishing files so that a name either does not exist or holds complete, durable bytes.

Temporary name in the same directory, write, length check, fsync, rename, fsync of the directory: there is no other
way into a pack. Promises nothing about a device that lies about fsync. Published files are read-only.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ..manifests.errors import StorageError
from ..manifests.files import OUT_OF_SPACE, gigabytes

TEMPORARY_SUFFIX = ".tmp"
READ_ONLY = 0o444


class AtomicFile:
    """A file of exactly `size` bytes that appears under its name when its `with` block ends well, or not at all.

    Raises StorageError when the disk is full or fails, ValueError when other than `size` bytes were written.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.written = 0
        self._temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        self._descriptor = -1

    def __enter__(self) -> "AtomicFile":
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with self._reporting():
            self._descriptor = os.open(self._temporary, flags, 0o644)
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`, completely."""
        left = memoryview(data)
        with self._reporting():
            while left:
                count = os.write(self._descriptor, left)
                left, self.written = left[count:], self.written + count

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        published = False
        try:
            if kind is None:
                self._publish()
                published = True
        finally:
            os.close(self._descriptor)
            if not published:
                self._temporary.unlink(missing_ok=True)

    def _publish(self) -> None:
        if self.written != self.size:
            raise ValueError(f"{self.path} was planned with {self.size} bytes, but {self.written} were written")
        with self._reporting():
            stored = os.fstat(self._descriptor).st_size
            if stored != self.size:
                raise OSError(errno.EIO, f"the system stored {stored} of {self.size} bytes")
            os.fchmod(self._descriptor, READ_ONLY)
            sync(self._descriptor)
            self._temporary.rename(self.path)
            sync_directory(self.path.parent)

    def _reporting(self) -> "Reporting":
        return Reporting(self.path, lambda: self.size - self.written)


class Reporting:
    """A `with` block whose OSErrors become StorageErrors about writing `path`; `needed` counts the bytes missing."""

    def __init__(self, path: Path, needed: Callable[[], int] = lambda: 0) -> None:
        self._path, self._needed = path, needed

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            raise storage_error(error, self._path, self._needed()) from error


def storage_error(error: OSError, path: Path, needed: int) -> StorageError:
    """The sentence for an OSError met while writing `path`, of which `needed` bytes are not on the disk yet."""
    if error.errno in OUT_OF_SPACE:
        free = gigabytes(shutil.disk_usage(path.parent).free)
        return StorageError(
            f"{path} cannot be written ({error.strerror}): {free} free, {gigabytes(needed)} of it still missing;"
            " make room and run the same command again to resume"
        )
    return StorageError(f"{path} cannot be written: {error.strerror}; run the same command again to resume")


def sync(descriptor: int) -> None:
    """Make a file durable. On macOS fsync leaves data in the drive's cache, F_FULLFSYNC does not."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        try:
            fcntl.fcntl(descriptor, full)
            return
        except OSError as error:  # network volumes do not know it
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
    os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
