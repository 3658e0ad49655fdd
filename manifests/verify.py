"""Comparing every byte of a pack with its manifest, and naming every difference instead of stopping at the first.

Each file is read once, several layers at a time. Only a manifest that cannot be believed at all is an error; then
nothing else could be judged.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import digest, inventory, layers, names, sums
from .errors import CorruptInputError, StorageError
from .files import read_small
from .manifest import pack_digest, read_manifest
from .places import Places
from .progress import Progress, Task
from .report import Finding, Report
from .schema import ExpertLayer, File, Manifest

__all__ = ["Finding", "Report", "pack_digest", "verify"]


def verify(path: Path, *, threads: int, progress: Progress) -> Report:
    """Check every file, digest and padding byte of the pack in the directory `path`.

    Raises CorruptInputError, MismatchError or UnsupportedError if the manifest itself cannot be used.
    """
    start = time.monotonic()
    manifest = read_manifest(path)
    with progress.task("Verifying", sum(inventory.expected_sizes(manifest).values())) as task:
        meter = _Meter(task)
        found = list(_Verification(path, manifest, threads, meter).findings())
    seconds = time.monotonic() - start
    return Report(not found, pack_digest(path), found, meter.size, seconds)


class _Meter:
    """Counts the bytes checked and passes them on to the progress display."""

    def __init__(self, task: Task) -> None:
        self.size = 0
        self._task = task
        self._lock = threading.Lock()

    def advance(self, size: int) -> None:
        with self._lock:
            self.size += size
        self._task.advance(size)


@dataclass(frozen=True)
class _Verification:
    path: Path
    manifest: Manifest
    threads: int
    meter: _Meter

    def findings(self) -> Iterator[Finding]:
        for name in inventory.extra_names(self.path, self.manifest):
            yield Finding(name, "does not belong to the pack; remove it", kind="stray")
        listed: Mapping[str, str] = {}
        try:
            listed = sums.read(self.path, self.manifest) or {}
        except CorruptInputError as error:
            yield Finding(names.SUMS_FILE, str(error))
        for file in self.manifest.files:
            yield from self._file(file, listed)
        yield from self._layers(self._record_digests(), listed)

    def _file(self, file: File, listed: Mapping[str, str]) -> Iterator[Finding]:
        problem = inventory.fault(self.path, file.name, file.size)
        if problem is not None:
            yield Finding(file.name, problem)
            return
        try:
            actual = digest.both_of_file(self.path / file.name, advance=self.meter.advance)
        except (CorruptInputError, StorageError) as error:
            yield Finding(file.name, f"cannot be read: {error}", kind="unreadable")
            return
        if actual.blake3 != file.blake3:
            yield Finding(file.name, "is damaged")
        else:
            yield from sums.disagreements(listed, file.name, actual.sha256)

    def _record_digests(self) -> Places | None:
        listed = next(file for file in self.manifest.files if file.name == self.manifest.digests)
        try:
            content = read_small(self.path / listed.name, listed.size)
        except (CorruptInputError, StorageError):
            return None
        if digest.of_bytes(content).hex() != listed.blake3:
            return None
        return Places(content, self.manifest.model.num_experts)

    def _layers(self, places: Places | None, listed: Mapping[str, str]) -> Iterator[Finding]:
        def judge(index: int) -> list[Finding]:
            return list(self._layer(index, self.manifest.layers[index], places, listed))

        with ThreadPoolExecutor(self.threads) as pool:
            for found in pool.map(judge, range(len(self.manifest.layers))):
                yield from found

    def _layer(
        self, index: int, layer: ExpertLayer, places: Places | None, listed: Mapping[str, str]
    ) -> Iterator[Finding]:
        experts = self.manifest.model.num_experts
        problem = inventory.fault(self.path, layer.file, layer.stride * experts)
        if problem is not None:
            yield Finding(layer.file, problem, index)
        try:
            scan = layers.scan(self.path / layer.file, index, layer, experts, self.meter.advance, places)
        except (CorruptInputError, StorageError) as error:
            if problem is None:
                yield Finding(layer.file, f"cannot be read: {error}", index, kind="unreadable")
            return
        found = list(layers.findings(index, layer, scan, places))
        yield from found
        if problem is None and not found:
            yield from sums.disagreements(listed, layer.file, scan.sha256)
