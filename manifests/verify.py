"""Comparing a pack with its manifest, and naming every difference instead of stopping at the first.

All of it, or the part that a scope names. Each file is read once, several layers at a time; what a ledger knows to be
done is not read again. Only a manifest that cannot be believed at all is an error; then nothing else could be judged.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import digest, inventory, layers, names, sums
from .errors import CorruptInputError, StorageError
from .files import Folder, read_small
from .ledger import Done, Forgetful, Ledger
from .manifest import pack_digest, read_sealed
from .pace import Pace
from .places import Places
from .progress import Progress, Task
from .report import Finding, Report
from .schema import ExpertLayer, File, Manifest
from .scope import Full, Scope

__all__ = ["Finding", "Report", "pack_digest", "verify"]

FULL = Full()


def verify(
    path: Path,
    *,
    threads: int,
    progress: Progress,
    scope: Scope = FULL,
    ledger: Ledger | None = None,
    pace: Pace | None = None,
) -> Report:
    """Check the files, digests and padding of the pack in the directory `path`, as far as `scope` goes.

    Raises CorruptInputError, MismatchError or UnsupportedError if the manifest itself cannot be used. An interrupt
    leaves in `ledger` what was done by then.
    """
    start = time.monotonic()
    with Folder(path) as folder:
        manifest, digests = read_sealed(folder)
        reading = _Reading.of(manifest, scope)
        with progress.task("Verifying", reading.size) as task:
            meter = _Meter(task, pace or Pace())
            found = list(_Verification(folder, manifest, reading, threads, meter, ledger or Forgetful()).findings())
        return Report(
            ok=not found,
            pack_digest=digests.blake3,
            findings=found,
            bytes_checked=meter.size,
            seconds=time.monotonic() - start,
            scope=scope.name,
            bytes_total=sum(inventory.expected_sizes(manifest).values()),
            records_checked=meter.records,
            records_total=manifest.model.num_layers * manifest.model.num_experts,
            bytes_earlier=meter.earlier,
        )


@dataclass(frozen=True)
class _Reading:
    """What a scope comes to: the experts of each layer, None for whole files, and whether the trunk is read."""

    experts: Mapping[int, Collection[int] | None]
    trunk: bool
    size: int

    @classmethod
    def of(cls, manifest: Manifest, scope: Scope) -> "_Reading":
        count, per_layer = manifest.model.num_layers, manifest.model.num_experts
        if isinstance(scope, Full):
            return cls(dict.fromkeys(range(count)), True, sum(inventory.expected_sizes(manifest).values()))
        chosen = scope.chosen(count * per_layer + 1)
        experts: list[set[int]] = [set() for _ in range(count)]
        for index in chosen:
            if index < count * per_layer:
                experts[index // per_layer].add(index % per_layer)
        trunk = count * per_layer in chosen
        size = sum(file.size for file in manifest.files if trunk or file.name != manifest.trunk.file)
        size += sum(layer.stride * len(one) for layer, one in zip(manifest.layers, experts, strict=True))
        whole = {index: one if len(one) < per_layer else None for index, one in enumerate(experts)}
        return cls(whole, trunk, size)


class _Meter:
    """Counts what was checked, passes bytes on to the progress display, and keeps the pace."""

    def __init__(self, task: Task, pace: Pace) -> None:
        self.size = self.earlier = self.records = 0
        self.pace = pace
        self._task = task
        self._lock = threading.Lock()

    def advance(self, size: int) -> None:
        self._count(size)
        self.pace.advance(size)

    def skip(self, done: Done) -> None:
        """An earlier run did this."""
        self._count(done.size)
        with self._lock:
            self.earlier += done.size

    def finished(self, done: Done) -> None:
        with self._lock:
            self.records += done.records

    def _count(self, size: int) -> None:
        with self._lock:
            self.size += size
        self._task.advance(size)


@dataclass
class _Local:
    """Bytes of one file, on their way to the meter that counts all."""

    meter: _Meter
    size: int = 0

    def advance(self, size: int) -> None:
        self.size += size
        self.meter.advance(size)


@dataclass(frozen=True)
class _Verification:
    pack: Folder
    manifest: Manifest
    reading: _Reading
    threads: int
    meter: _Meter
    ledger: Ledger

    def findings(self) -> Iterator[Finding]:
        for name in inventory.extra_names(self.pack, self.manifest):
            yield Finding(name, "does not belong to the pack; remove it", kind="stray")
        listed: Mapping[str, str] = {}
        try:
            listed = sums.read(self.pack, self.manifest) or {}
        except CorruptInputError as error:
            yield Finding(names.SUMS_FILE, str(error))
        for file in self.manifest.files:
            yield from self._file(file, listed)
        yield from self._layers(self._record_digests(), listed)

    def _file(self, file: File, listed: Mapping[str, str]) -> Iterator[Finding]:
        problem = inventory.fault(self.pack, file.name, file.size)
        if problem is not None:
            yield Finding(file.name, problem)
        elif self.reading.trunk or file.name != self.manifest.trunk.file:
            judged = listed.get(file.name, "without")
            yield from self._once(file.name, judged, lambda local: self._file_read(file, listed, local))

    def _file_read(self, file: File, listed: Mapping[str, str], local: _Local) -> tuple[list[Finding], int]:
        try:
            actual = digest.both_of_file(self.pack / file.name, advance=local.advance)
        except (CorruptInputError, StorageError) as error:
            return [Finding(file.name, f"cannot be read: {error}", kind="unreadable")], 0
        if actual.blake3 != file.blake3:
            return [Finding(file.name, "is damaged")], 0
        return list(sums.disagreements(listed, file.name, actual.sha256)), 0

    def _record_digests(self) -> Places | None:
        listed = next(file for file in self.manifest.files if file.name == self.manifest.digests)
        try:
            content = read_small(self.pack / listed.name, listed.size)
        except (CorruptInputError, StorageError):
            return None
        if digest.of_bytes(content).hex() != listed.blake3:
            return None
        return Places(content, self.manifest.model.num_experts)

    def _layers(self, places: Places | None, listed: Mapping[str, str]) -> Iterator[Finding]:
        def judge(index: int) -> list[Finding]:
            return list(self._layer(index, self.manifest.layers[index], places, listed))

        with ThreadPoolExecutor(self.threads) as pool:
            try:
                for found in pool.map(judge, range(len(self.manifest.layers))):
                    yield from found
            except BaseException:
                self.meter.pace.stop()  # or leaving the pool would wait for whole layers
                raise

    def _layer(
        self, index: int, layer: ExpertLayer, places: Places | None, listed: Mapping[str, str]
    ) -> Iterator[Finding]:
        chosen, experts = self.reading.experts[index], self.manifest.model.num_experts
        problem = inventory.fault(self.pack, layer.file, layer.stride * experts)
        if problem is not None:
            yield Finding(layer.file, problem, index)
        if chosen is not None and (not chosen or places is None):
            return  # single records are judged by their digests alone

        def read(local: _Local) -> tuple[list[Finding], int]:
            try:
                scan = layers.scan(self.pack / layer.file, index, layer, experts, local.advance, places, chosen)
            except (CorruptInputError, StorageError) as error:
                unreadable = Finding(layer.file, f"cannot be read: {error}", index, kind="unreadable")
                return ([] if problem is not None else [unreadable]), 0
            found = list(layers.findings(index, layer, scan, places))
            if problem is None and not found and chosen is None:
                found = list(sums.disagreements(listed, layer.file, scan.sha256))
            return found, sum(record is not None for record in scan.records)

        judged = f"{'with' if places is not None else 'without'} digests, {listed.get(layer.file, 'without sums')}"
        yield from self._once(layer.file, judged, read)

    def _once(self, name: str, how: str, read: Callable[[_Local], tuple[list[Finding], int]]) -> list[Finding]:
        """What is found in a file: by reading it, unless the ledger knows and the file is as it was."""
        stamp = f"{inventory.stamp(self.pack, name)} {how}".strip()
        done = self.ledger.known(name)
        if done is not None and done.stamp == stamp:
            self.meter.skip(done)
        else:
            local = _Local(self.meter)
            with self.meter.pace.reading(self.pack / name):
                found, records = read(local)
            done = Done(stamp, found, local.size, records)
            if not any(finding.kind == "unreadable" for finding in found):  # the next run may have more luck
                self.ledger.keep(name, done)
        self.meter.finished(done)
        return done.findings
