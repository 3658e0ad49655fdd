"""Opening and reading files that are not trusted: regular files only, exactly the bytes asked for, or an error.

Everything in the project that reads a checkpoint or a pack reads through `read_exactly`: a short read, an I/O error
or a file that shrank after it was opened is never mistaken for data. The files of a pack are opened through a
`Folder`, whose directory stays open: whoever moves or links things about meanwhile changes nothing.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from . import names
from .errors import CorruptInputError, StorageError, UsageError

PIECE_BYTES = 4 * 1024 * 1024
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Folder:
    """A directory held open; a context manager. `folder / name` is a file in it, or in a folder of it.

    Links on the way to the directory itself are followed, since the user named it; none inside it is.
    """

    def __init__(self, path: Path) -> None:
        """Raises UsageError if there is nothing at `path`, CorruptInputError for a file, StorageError if refused."""
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UsageError(f"{path} is not a pack: there is no such directory; look for a slip in its name") from None
        except NotADirectoryError:
            raise CorruptInputError(f"{path} is not a pack: it is not a directory") from None
        except OSError as error:
            raise StorageError(f"{path} cannot be opened: {error.strerror}") from error

    def __truediv__(self, name: str) -> "Member":
        return Member(self, name)

    def __str__(self) -> str:
        return str(self.path)

    def names(self, inside: str | None = None) -> list[str]:
        """What is in the directory, or in its folder `inside`, of which there may be none; sorted."""
        if inside is None:
            return sorted(os.listdir(self._descriptor))  # noqa: PTH208 (a descriptor)
        try:
            with self._inside([inside]) as descriptor:
                return sorted(os.listdir(descriptor))  # noqa: PTH208 (a descriptor)
        except OSError:
            return []

    @contextmanager
    def holding(self, name: str) -> Iterator[tuple[int, str]]:
        """A descriptor of the directory that the file `name` lies in, and its name there, for the length of a block.

        Raises CorruptInputError for a name that no file of a pack may have, OSError if a folder on the way is none.
        """
        *folders, last = name.split("/")
        if not all(map(names.is_safe, (*folders, last))):
            raise CorruptInputError(f"{name!r} is not a name that a file of a pack may have")
        with self._inside(folders) as descriptor:
            yield descriptor, last

    def close(self) -> None:
        """Close the directory; nothing in it can be opened afterwards."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _inside(self, folders: list[str]) -> Iterator[int]:
        descriptor = os.dup(self._descriptor)
        try:
            for folder in folders:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                outer, descriptor = descriptor, os.open(folder, flags, dir_fd=descriptor)
                os.close(outer)
            yield descriptor
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class Member:
    """A file of an opened folder, by its name there; it prints as its path."""

    folder: Folder
    name: str

    @property
    def path(self) -> Path:
        """Where it was found, for messages; opening that again may find another file."""
        return self.folder.path / self.name

    def __str__(self) -> str:
        return str(self.path)


FilePlace: TypeAlias = Path | Member


def open_regular(path: FilePlace, *, follow_links: bool = False) -> int:
    """A read-only descriptor of the regular file `path`; the caller closes it.

    Raises CorruptInputError for a missing file, a link (unless followed), a directory, a pipe or a device, and
    StorageError when the system refuses. Opening never blocks on a pipe.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        descriptor = _open(path, flags)
    except OSError as error:
        raise _refusal(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptInputError(f"{path} is not a regular file")
    return descriptor


def require_there(path: Path) -> None:
    """Raise UsageError if nothing is at a path that a command names, or where it leads."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path} does not exist; look for a slip in its name") from None
    except OSError:
        return  # whoever opens it tells why it cannot


def status(path: FilePlace) -> os.stat_result:
    """What the system says of a file, links not followed. Raises OSError."""
    if isinstance(path, Path):
        return path.lstat()
    with path.folder.holding(path.name) as (descriptor, name):
        return os.stat(name, dir_fd=descriptor, follow_symlinks=False)


def _open(path: FilePlace, flags: int) -> int:
    if isinstance(path, Path):
        return os.open(path, flags)
    with path.folder.holding(path.name) as (descriptor, name):
        return os.open(name, flags, dir_fd=descriptor)


def _refusal(path: FilePlace, error: OSError) -> CorruptInputError | StorageError:
    if error.errno == errno.ENOENT:
        return CorruptInputError(f"{path} is missing")
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return CorruptInputError(f"{path} is a symbolic link, not a regular file")
    if error.errno in (errno.ENXIO, errno.ENOTDIR):
        return CorruptInputError(f"{path} is not a regular file")
    return StorageError(f"{path} cannot be opened: {error.strerror}")


def read_exactly(descriptor: int, buffer: memoryview, offset: int, path: FilePlace) -> None:
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


def pieces(descriptor: int, offset: int, size: int, path: FilePlace, most: int = PIECE_BYTES) -> Iterator[memoryview]:
    """`size` bytes of `path` from `offset` on, at `most` so many at a time, each valid until the next is asked for.

    Raises StorageError as `read_exactly` does.
    """
    buffer = memoryview(bytearray(min(size, most)))
    for done in range(0, size, most):
        piece = buffer[: size - done]
        read_exactly(descriptor, piece, offset + done, path)
        yield piece


def read_small(path: FilePlace, limit: int, *, follow_links: bool = False) -> bytes:
    """All bytes of the regular file `path`; CorruptInputError, before reading, if it has more than `limit`."""
    descriptor = open_regular(path, follow_links=follow_links)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise CorruptInputError(f"{path} has {size} bytes; at most {limit} are allowed")
        return read_bytes(descriptor, size, path)
    finally:
        os.close(descriptor)


def read_bytes(descriptor: int, size: int, path: FilePlace) -> bytes:
    """The first `size` bytes of a file, of which there is never a second copy. Raises StorageError if it is shorter."""
    content = os.pread(descriptor, size, 0)  # most files come whole
    if len(content) == size:
        return content
    whole = bytearray(size)
    read_exactly(descriptor, memoryview(whole), 0, path)
    return bytes(whole)


def gigabytes(size: int) -> str:
    """A size in GB (10^9 bytes) for a sentence; small sizes stay in bytes."""
    return f"{size / 1e9:.2f} GB" if size >= 10_000_000 else f"{size} bytes"
