"""Everything that changes the disk: files appear under their names complete and durable, or not at all.

Temporary name in the same directory, write, length check, fsync, rename, fsync of the directory: there is no other
way into a pack. Published files are read-only. No other module opens a file for writing or changes a name (a test
says which few may, and why). Promises nothing about a device that lies about fsync.
"""

import errno
import fcntl
import os
import shutil
import stat
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ..manifests.errors import StorageError
from ..manifests.files import OUT_OF_SPACE, gigabytes

TEMPORARY_SUFFIX = ".tmp"
READ_ONLY = 0o444
REPLACEABLE = 0o644
PRIVATE = 0o600
PRIVATE_FOLDER = 0o700
FLUSH_BYTES = 64 * 1024 * 1024  # measured: twice the rate of leaving all of a 2 GB file to the last fsync


class AtomicFile:
    """A file of exactly `size` bytes that appears under its name when its `with` block ends well, or not at all.

    `size` is None if it cannot be known before; `mode` is that of the finished file; `apart` sets its temporary name
    apart from other writers' and other people's, where no lock keeps these away. Within the block `path` may be set to
    another one in the same directory, if it depends on the content. Raises StorageError when the disk is full or fails,
    ValueError when other than `size` bytes were written.
    """

    def __init__(self, path: Path, size: int | None, mode: int = READ_ONLY, *, apart: str = "") -> None:
        self.path = path
        self.size = size
        self.mode = mode
        self.written = 0
        self._temporary = path.with_name(path.name + apart + TEMPORARY_SUFFIX)
        self._apart = bool(apart)
        self._there = os.O_EXCL if apart else os.O_TRUNC  # what a lock protects can only be our own, left by a crash
        self._descriptor = -1

    def __enter__(self) -> "AtomicFile":
        flags = os.O_WRONLY | os.O_CREAT | self._there | os.O_CLOEXEC | os.O_NOFOLLOW
        with self._reporting():
            self._descriptor = os.open(self._temporary, flags, 0o644 & self.mode | stat.S_IWUSR)
        self._behind = WriteBehind(self._descriptor)
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`, completely."""
        left = memoryview(data)
        with self._reporting():
            while left:
                count = os.write(self._descriptor, left)
                left, self.written = left[count:], self.written + count
                self._behind.wrote(count)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        published = False
        try:
            if kind is None:
                self._publish()
                published = True
        finally:
            self._behind.close()
            os.close(self._descriptor)
            if not published:
                self._discard()

    def _publish(self) -> None:
        if self.size is not None and self.written != self.size:
            raise ValueError(f"{self.path} was planned with {self.size} bytes, but {self.written} were written")
        with self._reporting():
            self._behind.wait()
            stored = os.fstat(self._descriptor).st_size
            if stored != self.written:
                raise OSError(errno.EIO, f"the system stored {stored} of {self.written} bytes")
            os.fchmod(self._descriptor, self.mode)
            sync(self._descriptor)
            self._temporary.rename(self.path)
        with self._published():
            sync_directory(self.path.parent)

    def _discard(self) -> None:
        # Where not even this works, the next run removes it; the error that led here is the one to tell.
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _reporting(self) -> "Reporting":
        return Reporting(self.path, lambda: (self.size or self.written) - self.written)

    def _published(self) -> "Reporting | Published":
        # In a folder under construction the same command makes the file again; anywhere else it may refuse one there.
        if not self._apart:
            return self._reporting()
        remedy = "mind the disk, and run the same command again, without the file if it refuses that"
        return Published(self.path, "make its name durable", remedy)


def publish(path: Path, content: bytes | memoryview, mode: int = READ_ONLY) -> None:
    """Write a whole small file. Raises StorageError as AtomicFile does."""
    with AtomicFile(path, len(content), mode) as file:
        file.write(content)


def replace(path: Path, content: bytes | memoryview, mode: int = REPLACEABLE) -> None:
    """Write a whole small file that belongs to no pack and may be there already, whoever else does so at once."""
    with AtomicFile(path, len(content), mode, apart=f".{os.getpid()}-{threading.get_native_id()}") as file:
        file.write(content)


class AppendedFile:
    """A file that only grows, at `path`, created when missing; each addition is durable when `append` returns.

    `content` is what it held when opened. Raises StorageError when the disk is full or fails.
    """

    def __init__(self, path: Path, mode: int = REPLACEABLE) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        with Reporting(path):
            self._descriptor = os.open(path, flags, mode)
            try:
                sync_directory(path.parent)
                self.content = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
            except BaseException:
                os.close(self._descriptor)
                raise

    def append(self, data: bytes) -> None:
        """Add `data` at the end."""
        with Reporting(self.path, lambda: len(data)):
            if os.write(self._descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(self._descriptor)

    def cut(self, length: int) -> None:
        """Drop everything from `length` on; durable with the next addition."""
        with Reporting(self.path):
            os.ftruncate(self._descriptor, length)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class WriteBehind:
    """Writes a growing file back while more of it is made, so that little is left for the last sync to wait for.

    At most two portions are ever unwritten. Errors of the device come out of the next call.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unflushed = 0
        self._pool = ThreadPoolExecutor(1)  # its thread starts with the first portion
        self._pending: Future[None] | None = None

    def wrote(self, size: int) -> None:
        """`size` more bytes are in the file."""
        self._unflushed += size
        if self._unflushed >= FLUSH_BYTES:
            self.wait()
            self._unflushed = 0
            self._pending = self._pool.submit(getattr(os, "fdatasync", os.fsync), self._descriptor)

    def wait(self) -> None:
        """Wait for the portion under way. Raises OSError if the device failed."""
        if self._pending is not None:
            self._pending.result()

    def close(self) -> None:
        """End the thread; the descriptor is no longer used."""
        self._pool.shutdown()


def make_directory(path: Path) -> None:
    """Make a directory, durably, unless it is there. Raises OSError."""
    try:
        path.mkdir()
    except FileExistsError:
        return
    sync_directory(path.parent)


def make_folders(path: Path, mode: int = 0o777) -> None:
    """Make a directory, and those above it, where they are missing; not durably, since what goes in can be made again.

    All that are made have `mode`, less what the umask takes. Raises OSError.
    """
    if not path.parent.is_dir():  # mkdir's own `parents` would have them without the mode
        make_folders(path.parent, mode)
    path.mkdir(mode, exist_ok=True)


def rename(old: Path, new: Path) -> None:
    """Give a file or directory another name, which is durable once its directory is synced. Raises OSError."""
    old.rename(new)


def remove(path: Path) -> None:
    """Remove a file's name, if it is there. Raises OSError."""
    path.unlink(missing_ok=True)


def remove_directory(path: Path) -> None:
    """Remove an empty directory. Raises OSError."""
    path.rmdir()


class Reporting:
    """A `with` block whose OSErrors become StorageErrors about writing `path`; `needed` counts the bytes missing."""

    def __init__(self, path: Path, needed: Callable[[], int] = lambda: 0) -> None:
        self._path, self._needed = path, needed

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            raise storage_error(error, self._path, self._needed()) from error


def beside_removed(path: Path) -> "Published":
    """`Published`, of what was made in `path`.partial, which goes last."""
    return Published(
        path,
        "make its name durable or to remove what is beside it",
        f"verify it, and remove {path.name}.partial* if that is left",
    )


class Published:
    """A `with` block for what is left to do once `path` has its name: an OSError in it is told as no failure of that.

    The same command would refuse to overwrite `path`, so the StorageError does not advise it: the system failed to do
    what `failed` says, and `remedy` is what to do.
    """

    def __init__(self, path: Path, failed: str, remedy: str) -> None:
        self._path, self._failed, self._remedy = path, failed, remedy

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            raise StorageError(
                f"{self._path} is complete, but the system failed to {self._failed}: {error.strerror}; {self._remedy}"
            ) from error


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
