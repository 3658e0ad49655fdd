"""One packer per target: a lock on the directory under construction itself, gone with the process that held it."""

import errno
import fcntl
import os
from pathlib import Path

from ..manifests.errors import StorageError, UsageError
from ..manifests.files import OUT_OF_SPACE
from .atomic import make_directory, storage_error
from .journal import JOURNAL_FILE, Running, read_entries


class LockedDirectory:
    """The directory `path`, made when missing and locked until `close`.

    Raises StorageError when another process holds it or the disk fails or is full, UsageError when it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            make_directory(path)
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EIO, *OUT_OF_SPACE):
                raise storage_error(error, path, 0) from error
            raise UsageError(f"{path} cannot be made: {error.strerror}; choose another output") from error
        try:
            self._lock()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._descriptor)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(f"another moe-pack{self._owner()} is writing {self.path}") from error
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be locked: {error.strerror};"
                " run the same command again, or choose another output, on a disk that knows locks"
            ) from error
        # The former owner may have finished and renamed the directory between our open and our lock.
        if not self.path.is_dir() or not os.path.samestat(self.path.stat(), os.fstat(self._descriptor)):
            raise StorageError(f"another moe-pack has just finished {self.path}")

    def _owner(self) -> str:
        pids = [entry.pid for entry in read_entries(self.path / JOURNAL_FILE) if isinstance(entry, Running)]
        return f" (pid {pids[-1]})" if pids else ""
