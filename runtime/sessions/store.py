"""Prompts that were computed before, on disk: one file for each snapshot, found again after a restart.

A file's name is its key, which depends on the pack's digest, on how the engine computes and on every token up to the
snapshot's end, and the digest of its content: what is damaged or of something else is never continued from. Promises to
hold at most so many bytes, leaves used longest ago going first, and that a crash leaves whole files only. They tell
what was asked: files, and folders that are made for them, are for their owner alone. One process has a folder at a
time. Files are written by a thread of its own: what comes faster than the disk takes it is not kept.
What cannot be removed is logged once and left, beyond the limit; nothing that the disk refuses later is raised.
All else is for one thread. Knows nothing of what else is in memory.
"""

import fcntl
import heapq
import logging
import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from blake3 import blake3

from ...layout.atomic import PRIVATE, PRIVATE_FOLDER, TEMPORARY_SUFFIX, AtomicFile, make_folders, remove
from ...layout.tensorfile import Digested, Sink, TensorFile, TensorFileWriter, TensorSpec, byte_view
from ...layout.tensorheader import render
from ...manifests.errors import MismatchError, MoepackError, StorageError
from .snapshot import Snapshot

log = logging.getLogger("moepack.server")
ROOT = b""  # the key of a prompt's beginning
TOKENS, PARENT = "tokens", "parent"
QUEUE_BYTES = 64_000_000
_NAME = re.compile(r"(?P<key>[0-9a-f]{64})-(?P<content>[0-9a-f]{64})\.safetensors")


def key_of(identity: bytes, tokens: Sequence[int]) -> bytes:
    """The key of the snapshot after these tokens; of none of them, ROOT."""
    return after(blake3(identity), tokens).digest() if len(tokens) else ROOT


def after(hasher: blake3, tokens: Sequence[int]) -> blake3:
    """What becomes of a key's hasher with more tokens; the one given stays as it is."""
    further = hasher.copy()
    further.update(np.asarray(tokens, "<i4").tobytes())
    return further


@dataclass
class Kept:
    """A file of the store: the snapshot that it continues, the tokens since, its size, and when it was used.

    Until it is written it has no path, and the snapshot is `waiting`.
    """

    parent: bytes
    tokens: tuple[int, ...]
    size: int
    used: int
    file: Path | None = None
    waiting: Snapshot | None = None

    @property
    def path(self) -> Path:
        """Where it is, once it was written."""
        assert self.file is not None
        return self.file


@dataclass(frozen=True)
class _Written:
    """What came of a file: its path, or why there is none. Both None: nobody wanted it any more."""

    key: bytes
    kept: Kept
    bytes: int
    path: Path | None
    error: MoepackError | None


class Store:
    """The files of a folder. Raises StorageError if another process has it or the system refuses.

    Snapshots of at most `queue` bytes in all wait to be written; one may always.
    """

    def __init__(self, folder: Path, limit: int, queue: int = QUEUE_BYTES) -> None:
        self.folder = folder
        self.limit = limit
        self._queue, self._waiting = queue, 0
        self._failing = self._stuck = False
        try:
            make_folders(folder, PRIVATE_FOLDER)
            self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise StorageError(f"another moe-run keeps its state in {folder}; give another --state-dir") from error
        except OSError as error:
            raise _useless(folder, error) from error
        try:
            self._kept = dict(self._found())
        except OSError as error:
            os.close(self._lock)
            raise _useless(folder, error) from error
        self._make_room(0, ROOT)  # the limit may have been a larger one
        self._jobs: SimpleQueue[tuple[bytes, Kept, int] | threading.Event | None] = SimpleQueue()
        self._done: deque[_Written] = deque()
        self._writer = threading.Thread(target=self._write_all, name="moepack-store", daemon=True)
        self._writer.start()

    @property
    def kept(self) -> Mapping[bytes, Kept]:
        """What there is, by key. Nothing of it but names and small tensors was read."""
        self._settle()
        return self._kept

    def below(self) -> Mapping[bytes, list[bytes]]:
        """The keys that continue each."""
        found = dict[bytes, list[bytes]]()
        for key, kept in self._kept.items():
            found.setdefault(kept.parent, []).append(key)
        return found

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(kept.size for kept in self._kept.values())

    def takes(self, size: int) -> bool:
        """Whether a snapshot of so many bytes could wait to be written."""
        self._settle()
        return not self._waiting or self._waiting + size <= self._queue

    def save(self, key: bytes, parent: bytes, tokens: Sequence[int], snapshot: Snapshot) -> bool:
        """Keep a snapshot, soon; False if it has no room beside those that it continues, or too many wait.

        If the disk is full or fails, that is logged, and it is not kept after all.
        """
        kept = Kept(parent, tuple(tokens), 0, time.time_ns(), waiting=snapshot)
        kept.size = _Content(snapshot, kept).size
        if not self.takes(snapshot.size) or not self._make_room(kept.size, parent):
            return False
        self._kept[key] = kept
        self._waiting += snapshot.size
        self._jobs.put((key, kept, snapshot.size))
        return True

    def load(self, key: bytes, first: int) -> Snapshot:
        """The snapshot of a key that is kept, which begins at position `first`.

        Raises CorruptInputError or MismatchError for a file that is not what was saved, StorageError if it cannot be
        read; the file is of no use then.
        """
        kept = self.kept.get(key)
        if kept is None:
            raise MismatchError("it could not be written")
        if kept.waiting is not None:
            return kept.waiting
        with TensorFile.open(kept.path) as file:
            content, hasher = {name: file.read(name) for name in file.entries}, blake3(max_threads=blake3.AUTO)
            hasher.update(file.prefix())
        for array in content.values():  # which lie in this order, with nothing between them
            hasher.update(byte_view(array))
        if hasher.hexdigest() != kept.path.stem.partition("-")[2]:
            raise MismatchError(f"{kept.path} is damaged; remove it")
        layers = [(content[f"{index}.0"], content[f"{index}.1"]) for index in range((len(content) - 2) // 2)]
        return Snapshot(first, first + len(kept.tokens), tuple(layers))

    def touch(self, key: bytes) -> None:
        """A snapshot was used now."""
        kept = self._kept[key]
        kept.used = time.time_ns()
        try:
            if kept.file is not None:
                os.utime(kept.file)
        except OSError:  # the file is gone, or not ours: it is only its age that nobody knows
            pass

    def forget(self, key: bytes) -> None:
        """Remove a snapshot, and what continues it."""
        below, going = self.below(), [key]
        while going:
            each = going.pop()
            if each in self._kept:  # else of files that claim to continue each other
                going += below.get(each, ())
                self._drop(each)

    def _drop(self, key: bytes) -> Kept:
        """Remove this one alone."""
        gone = self._kept.pop(key)
        gone.waiting = None
        if gone.file is not None:
            self._remove(gone.file)
        return gone

    def drain(self) -> None:
        """Return once nothing waits to be written."""
        idle = threading.Event()
        self._jobs.put(idle)
        idle.wait()
        self._settle()

    def close(self) -> None:
        """Write what waits, and let another process have the folder."""
        self.drain()
        self._jobs.put(None)
        self._writer.join()
        os.close(self._lock)

    def _settle(self) -> None:
        """What has been written, or not, since this was last asked."""
        while self._done:
            done = self._done.popleft()
            self._waiting -= done.bytes
            done.kept.waiting = None
            wanted = self._kept.get(done.key) is done.kept
            if done.path is not None and wanted:
                done.kept.file = done.path
            elif done.path is not None and done.key not in self._kept:
                self._remove(done.path)
            elif wanted:
                self.forget(done.key)
            self._report(done.error)

    def _report(self, error: MoepackError | None) -> None:
        """The first of failures that follow each other."""
        if error is not None and not self._failing:
            log.error("prompts are not kept on disk for now: %s", error)
        self._failing = error is not None

    def _remove(self, path: Path) -> None:
        """A file's name, if the system lets us; the first refusal is logged."""
        try:
            remove(path)
        except OSError as error:
            if not self._stuck:
                log.error("%s cannot be removed: %s; %s may outgrow its limit", path, error.strerror, self.folder)
            self._stuck = True

    def _write_all(self) -> None:
        """The writer's thread."""
        while (job := self._jobs.get()) is not None:
            if isinstance(job, threading.Event):
                job.set()
                continue
            key, kept, size = job
            path, error = None, None
            try:
                path = self._written(key, kept)
            except MoepackError as failure:
                error = failure
            except Exception as failure:  # without this thread, whoever waits for it would wait forever
                error = StorageError(f"{self.folder} cannot be written: {failure}")
            self._done.append(_Written(key, kept, size, path, error))

    def _written(self, key: bytes, kept: Kept) -> Path | None:
        """The file that a snapshot is in now; None if it has been forgotten."""
        if (snapshot := kept.waiting) is None:
            return None
        content = _Content(snapshot, kept)
        with AtomicFile(self.folder / key.hex(), content.size, PRIVATE) as file:
            digested = Digested(file)
            content.write(digested)
            file.path = self.folder / f"{key.hex()}-{digested.hexdigest()}.safetensors"
        return file.path

    def _found(self) -> Iterator[tuple[bytes, Kept]]:
        """The files of the folder that are whole as far as a header tells; what a crash left unfinished is removed."""
        for path in sorted(self.folder.iterdir()):
            if path.name.endswith(TEMPORARY_SUFFIX):
                self._remove(path)
            elif (name := _NAME.fullmatch(path.name)) is not None:
                try:
                    with TensorFile.open(path) as file:
                        tokens, parent = file.read(TOKENS), file.read(PARENT)
                        used = path.stat().st_mtime_ns
                        kept = Kept(parent.tobytes(), tuple(tokens.tolist()), file.size, used, path)
                except (MoepackError, OSError):
                    continue
                yield bytes.fromhex(name["key"]), kept

    def _make_room(self, size: int, parent: bytes) -> bool:
        """Forget what is oldest and not continued, but for what leads to `parent`, until `size` more bytes fit."""
        over = self.size + size - self.limit
        if over <= 0:
            return True
        needed, below = set(self._line(parent)), Counter(kept.parent for kept in self._kept.values())
        ends = [(kept.used, key) for key, kept in self._kept.items() if not below[key] and key not in needed]
        heapq.heapify(ends)
        while over > 0 and ends:
            gone = self._drop(heapq.heappop(ends)[1])
            over -= gone.size
            below[gone.parent] -= 1
            if not below[gone.parent] and gone.parent in self._kept and gone.parent not in needed:
                heapq.heappush(ends, (self._kept[gone.parent].used, gone.parent))
        return over <= 0

    def _line(self, key: bytes) -> Iterator[bytes]:
        """A key and all that it continues."""
        while key in self._kept:
            yield key
            key = self._kept[key].parent


def _useless(folder: Path, error: OSError) -> StorageError:
    return StorageError(f"{folder} cannot keep states: {error.strerror}; give another --state-dir")


_DTYPES = {"<f4": "F32", "<i4": "I32", "|u1": "U8"}


class _Content:
    """What a file of a snapshot that waits consists of."""

    def __init__(self, snapshot: Snapshot, kept: Kept) -> None:
        self._arrays = {TOKENS: np.asarray(kept.tokens, "<i4"), PARENT: np.frombuffer(kept.parent, np.uint8)}
        for index, copies in enumerate(snapshot.layers):
            self._arrays |= {f"{index}.{part}": copies[part] for part in range(2)}
        self._specs = [TensorSpec(name, _DTYPES[array.dtype.str], array.shape) for name, array in self._arrays.items()]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(render(self._specs)) + sum(spec.size for spec in self._specs)

    def write(self, sink: Sink) -> None:
        """All of it."""
        writer = TensorFileWriter(sink, self._specs)
        for name, array in self._arrays.items():
            writer.write_blocks(name, [array])
        writer.finish()
