"""The SHA-256 of a checkpoint's weight files, computed beside the build, in a thread of its own.

A manifest says by it which files a pack was made of, as the Hub lists them. A file that an earlier run has hashed, and
whose size and time of change are still the same, is not read again. `digest_changes` holds a checkpoint against it.
"""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from types import TracebackType

from ..layout.journal import SourceDone
from ..layout.tensorfile import TensorFile
from ..manifests import digest
from ..manifests.diff import Change
from ..manifests.errors import CorruptInputError
from ..manifests.files import pieces
from ..manifests.progress import Progress
from ..manifests.schema import SourceFile


class SourceHashing:
    """Hashes those of `files` that `hashed` does not hold as they are; a context manager, which ends the thread.

    Errors of a file come out of `done` or `rest`: CorruptInputError if it is gone, or if it changed while it was read,
    with the `remedy`; StorageError if it cannot be read.
    """

    def __init__(self, files: Sequence[TensorFile], hashed: Mapping[str, SourceDone], remedy: str) -> None:
        self._files = [file for file in files if not is_current(file, hashed.get(file.path.name))]
        self._remedy = remedy
        self._leaving = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="moe-pack-sources")
        self._waiting: dict[str, Future[SourceDone]] = {}

    def __enter__(self) -> "SourceHashing":
        self._waiting = {file.path.name: self._pool.submit(self._hash, file) for file in self._files}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.set()
        self._pool.shutdown(cancel_futures=True)

    def done(self) -> Iterator[SourceDone]:
        """What has been hashed since the last call, without waiting."""
        for name in [name for name, hashing in self._waiting.items() if hashing.done()]:
            yield self._waiting.pop(name).result()

    def rest(self, progress: Progress) -> Iterator[SourceDone]:
        """All the rest; `progress` shows what is waited for."""
        yield from self.done()
        sizes = {file.path.name: file.size for file in self._files if file.path.name in self._waiting}
        if not sizes:
            return
        with progress.task("hashing the checkpoint", sum(sizes.values())) as task:
            for name, size in sizes.items():
                yield self._waiting.pop(name).result()
                task.advance(size)

    def _hash(self, file: TensorFile) -> SourceDone:
        hasher = sha256()
        with digest.opened(file.path, follow_links=True) as descriptor:
            before = os.fstat(descriptor)
            for piece in pieces(descriptor, 0, before.st_size, file.path):
                if self._leaving.is_set():
                    break  # nobody asks for the result
                hasher.update(piece)
            after = os.fstat(descriptor)
        if (after.st_size, after.st_mtime_ns) != (file.size, before.st_mtime_ns):
            raise CorruptInputError(f"{file.path} changed while it was read; {self._remedy}")
        return SourceDone(file.path.name, after.st_size, after.st_mtime_ns, hasher.hexdigest())


def digest_changes(listed: Sequence[SourceFile], files: Sequence[TensorFile], progress: Progress) -> list[Change]:
    """Which of `files` have another SHA-256 than a manifest lists; names that are in one only are not judged here.

    Reads every byte. Raises CorruptInputError for a file that has gone or changed meanwhile, StorageError.
    """
    wanted = {file.name: file.sha256 for file in listed}
    known = [file for file in files if file.path.name in wanted]
    with SourceHashing(known, {}, "let nothing write to it, and start again") as hashing:
        there = {file.name: file.sha256 for file in hashing.rest(progress)}
    return [
        Change(f"{name}.sha256", wanted[name], found) for name, found in sorted(there.items()) if found != wanted[name]
    ]


def is_current(file: TensorFile, hashed: SourceDone | None) -> bool:
    """Whether `file` still has the size and time of change that it had when it was hashed; not if it never was."""
    try:
        status = file.path.stat()
    except OSError:
        return False
    return hashed is not None and (status.st_size, status.st_mtime_ns) == (hashed.size, hashed.modified)
