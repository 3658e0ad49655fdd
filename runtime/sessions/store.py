"""Prompts that were computed before, on disk: one file for each snapshot, found again after a restart.

A file's name is its key, which depends on the pack's digest, on how the engine computes and on every token up to the
snapshot's end, and the digest of its content: what is damaged or of something else is never continued from. Promises to
hold at most so many bytes, leaves used longest ago going first, and that a crash leaves whole files only. One process
has a folder at a time. Knows nothing of what is in memory.
"""

import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3

from ...layout.atomic import TEMPORARY_SUFFIX, AtomicFile, make_folders, remove
from ...layout.tensorfile import Array, TensorFile, TensorFileWriter, TensorSpec
from ...manifests import digest
from ...manifests.errors import MismatchError, MoepackError, StorageError
from .snapshot import LayerCopy, Snapshot

ROOT = b""  # the key of a prompt's beginning
TOKENS, PARENT = "tokens", "parent"
_NAME = re.compile(r"(?P<key>[0-9a-f]{64})-(?P<content>[0-9a-f]{64})\.safetensors")


def key_of(identity: bytes, tokens: Sequence[int]) -> bytes:
    """The key of the snapshot after these tokens; of none of them, ROOT."""
    return blake3(identity + np.asarray(tokens, "<i4").tobytes()).digest() if len(tokens) else ROOT


@dataclass
class Kept:
    """A file of the store: the snapshot that it continues, the tokens since, its size, and when it was used."""

    path: Path
    parent: bytes
    tokens: tuple[int, ...]
    size: int
    used: int


class Store:
    """The files of a folder. Raises StorageError if another process has it or the system refuses."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        try:
            make_folders(folder)
            self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise StorageError(f"another moe-run keeps its state in {folder}; give another --state-dir") from error
        except OSError as error:
            raise StorageError(f"{folder} cannot keep states: {error.strerror}; give another --state-dir") from error
        self._kept = dict(self._found())

    @property
    def kept(self) -> Mapping[bytes, Kept]:
        """What there is, by key. Nothing of it but names and small tensors was read."""
        return self._kept

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(kept.size for kept in self._kept.values())

    def save(self, key: bytes, parent: bytes, tokens: Sequence[int], snapshot: Snapshot) -> bool:
        """Keep a snapshot; False if it has no room beside those that it continues.

        Raises StorageError if the disk is full or fails.
        """
        arrays = {TOKENS: np.asarray(tokens, "<i4"), PARENT: np.frombuffer(parent, np.uint8)}
        arrays |= {f"{index}.{part}": copy[part] for index, copy in enumerate(snapshot.layers) for part in range(2)}
        specs = [TensorSpec(name, _DTYPES[array.dtype.str], array.shape) for name, array in arrays.items()]
        measure = _Measure()
        _write(measure, specs, arrays)
        if not self._make_room(measure.size, parent):
            return False
        path = self.folder / f"{key.hex()}-{measure.hexdigest()}.safetensors"
        with AtomicFile(path, measure.size) as file:
            _write(file, specs, arrays)
        self._kept[key] = Kept(path, parent, tuple(tokens), measure.size, path.stat().st_mtime_ns)
        return True

    def load(self, key: bytes, first: int) -> Snapshot:
        """The snapshot of a key that is kept, which begins at position `first`.

        Raises CorruptInputError or MismatchError for a file that is not what was saved, StorageError if it cannot be
        read; the file is of no use then.
        """
        kept = self._kept[key]
        if digest.of_file(kept.path) != kept.path.stem.partition("-")[2]:
            raise MismatchError(f"{kept.path} is damaged; remove it")
        with TensorFile.open(kept.path) as file:
            count = (len(file.entries) - 2) // 2
            layers = tuple(_layer(file, index) for index in range(count))
        return Snapshot(first, first + len(kept.tokens), layers)

    def touch(self, key: bytes) -> None:
        """A snapshot was used now."""
        kept = self._kept[key]
        try:
            os.utime(kept.path)
            kept.used = kept.path.stat().st_mtime_ns
        except OSError:  # the file is gone, or not ours: it is only its age that nobody knows
            pass

    def forget(self, key: bytes) -> None:
        """Remove a snapshot, and what continues it."""
        for other in [other for other, kept in self._kept.items() if kept.parent == key]:
            self.forget(other)
        remove(self._kept.pop(key).path)

    def close(self) -> None:
        """Let another process have the folder."""
        os.close(self._lock)

    def _found(self) -> Iterator[tuple[bytes, Kept]]:
        """The files of the folder that are whole as far as a header tells; what a crash left unfinished is removed."""
        for path in sorted(self.folder.iterdir()):
            if path.name.endswith(TEMPORARY_SUFFIX):
                remove(path)
            elif (name := _NAME.fullmatch(path.name)) is not None:
                try:
                    with TensorFile.open(path) as file:
                        tokens, parent = file.read(TOKENS), file.read(PARENT)
                        status = path.stat()
                        kept = Kept(path, parent.tobytes(), tuple(tokens.tolist()), file.size, status.st_mtime_ns)
                except MoepackError:
                    continue
                yield bytes.fromhex(name["key"]), kept

    def _make_room(self, size: int, parent: bytes) -> bool:
        """Forget what is oldest and not continued, but for what leads to `parent`, until `size` more bytes fit."""
        needed = set(self._line(parent))
        while self.size + size > self.limit:
            parents = {kept.parent for kept in self._kept.values()}
            ends = [key for key in self._kept if key not in parents and key not in needed]
            if not ends:
                return False
            self.forget(min(ends, key=lambda key: self._kept[key].used))
        return True

    def _line(self, key: bytes) -> Iterator[bytes]:
        """A key and all that it continues."""
        while key in self._kept:
            yield key
            key = self._kept[key].parent


_DTYPES = {"<f4": "F32", "<i4": "I32", "|u1": "U8"}


class _Measure:
    """Takes a file's content and keeps only its size and digest."""

    def __init__(self) -> None:
        self.size = 0
        self._hasher = blake3()

    def write(self, data: bytes | memoryview) -> None:
        self.size += len(data)
        self._hasher.update(data)

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()


def _write(sink: _Measure | AtomicFile, specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> None:
    writer = TensorFileWriter(sink, specs)
    for spec in specs:
        writer.write_blocks(spec.name, [arrays[spec.name]])
    writer.finish()


def _layer(file: TensorFile, index: int) -> LayerCopy:
    return file.read(f"{index}.0"), file.read(f"{index}.1")
