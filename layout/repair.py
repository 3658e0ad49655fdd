"""Mending a published pack: files made anew beside it, proven by the manifest's digests, then put in place by renames.

No file of the pack is ever opened for writing. Until every new file is complete, durable and has its digest, nothing
of the pack changes; a crash between the renames leaves some files mended, which the same command goes on from. The
manifest is never rewritten.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..manifests import inventory, names, schema
from ..manifests.errors import MismatchError, UsageError
from .atomic import TEMPORARY_SUFFIX, AtomicFile, Reporting, make_directory, remove_directory, rename, sync_directory
from .lock import LockedDirectory
from .plan import PackPlan
from .sinks import HashingSink, LayerSink, TrunkSink
from .writer import HASHING_THREADS, check_space, is_directory, sweep

SUFFIX = ".repair"


class PackRepair:
    """Makes files of the pack at `path` anew, in `<path>.repair/`, which is locked. A context manager.

    Leaving it without `commit` removes what was made. Every file must come out with the digest in the manifest, or
    MismatchError is raised.
    """

    def __init__(self, path: Path, manifest: schema.Manifest, plan: PackPlan, resources: ExitStack) -> None:
        self.path, self.manifest, self.plan = path, manifest, plan
        self.staging = _staging(path)
        self._made: list[str] = []
        self._pool = resources.enter_context(ThreadPoolExecutor(HASHING_THREADS))
        self._resources = resources

    @classmethod
    def open(cls, path: Path, manifest: schema.Manifest, plan: PackPlan, needed: int) -> "PackRepair":
        """Begin; `needed` bytes will be written.

        Raises UsageError if `<path>.repair` holds anything else, StorageError if another process repairs the pack or
        the disk has too little room.
        """
        _require_directories(path)
        with ExitStack() as resources:
            repair = cls(path, manifest, plan, resources)
            resources.callback(LockedDirectory(repair.staging).close)
            _require_ours(repair.staging, manifest)  # or it would be swept away
            with Reporting(repair.staging):
                sweep(repair.staging, set())
            check_space(repair.staging, needed, "this repair")
            repair._resources = resources.pop_all()
            return repair

    @contextmanager
    def layer(self, index: int) -> Iterator[LayerSink]:
        """Make layer `index`: append every expert's record in the block."""
        listed = self.manifest.layers[index]
        with AtomicFile(self.staging / listed.file, self.plan.layer_bytes(index)) as file:
            sink = LayerSink(file, index, self.plan.records[index], self._pool)
            yield sink
            self._require(listed.file, sink.component_digests == {part.name: part.blake3 for part in listed.components})
        self._made.append(listed.file)

    @contextmanager
    def trunk(self) -> Iterator[TrunkSink]:
        """Make the trunk: every tensor in the plan's order."""
        listed = self._listed(self.manifest.trunk.file)
        with AtomicFile(self.staging / listed.name, self.plan.trunk_bytes) as file:
            sink = TrunkSink(file, self.plan.trunk, self._pool)
            yield sink
            self._require(listed.name, sink.finish().blake3 == listed.blake3)
        self._made.append(listed.name)

    @contextmanager
    def file(self, name: str) -> Iterator[HashingSink]:
        """Make any other file: write all of it in the block."""
        listed = self._listed(name)
        with AtomicFile(self.staging / name, None) as file:
            sink = HashingSink(file, self._pool)
            yield sink
            self._require(name, sink.digests().blake3 == listed.blake3)
        self._made.append(name)

    def place(self, name: str) -> Path:
        """Where a file of the mended pack is now: beside the pack if it was made, in it otherwise."""
        return (self.staging if name in self._made else self.path) / name

    def commit(self) -> None:
        """Put all that was made in its place. Raises StorageError if the system refuses."""
        experts = self.path / names.EXPERTS_FOLDER
        with Reporting(self.path):
            make_directory(experts)
            for name in self._made:
                rename(self.staging / name, self.path / name)
            for folder in (experts, self.path, self.staging / names.EXPERTS_FOLDER, self.staging):
                sync_directory(folder)

    def close(self) -> None:
        """Remove what is left beside the pack, and let go of the lock."""
        try:
            _remove(self.staging)
        finally:
            self._resources.close()

    def __enter__(self) -> "PackRepair":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listed(self, name: str) -> schema.File:
        return next(file for file in self.manifest.files if file.name == name)

    def _require(self, name: str, holds: bool) -> None:
        if not holds:
            raise MismatchError(
                f"{name}, made again, has another digest than {self.path} promises; nothing was changed. The source,"
                " the calibration or this moepack is not what the pack was made with"
            )


def remove_leftovers(path: Path, manifest: schema.Manifest) -> None:
    """Remove what an interrupted repair has left beside the pack at `path`. Raises as `PackRepair.open` does."""
    staging = _staging(path)
    if os.path.lexists(staging):
        lock = LockedDirectory(staging)
        try:
            _require_ours(staging, manifest)
            _remove(staging)
        finally:
            lock.close()


def _staging(path: Path) -> Path:
    whole = path.resolve()  # "." and "a/.." have a name too
    return whole.with_name(whole.name + SUFFIX)


def _remove(staging: Path) -> None:
    with Reporting(staging):
        sweep(staging, set())
        remove_directory(staging / names.EXPERTS_FOLDER)
        remove_directory(staging)
        sync_directory(staging.parent)


def _require_directories(path: Path) -> None:
    experts = path / names.EXPERTS_FOLDER
    if os.path.lexists(experts) and not is_directory(experts):
        raise UsageError(f"{experts} is not a directory; remove it and repair again")


def _require_ours(staging: Path, manifest: schema.Manifest) -> None:
    """What an interrupted repair leaves is known by its names; anything else is somebody's."""
    known = {f"{name}{suffix}" for name in inventory.expected_sizes(manifest) for suffix in ("", TEMPORARY_SUFFIX)}
    known.add(names.EXPERTS_FOLDER)
    for found in sorted(staging.rglob("*")):
        if str(found.relative_to(staging)) not in known:
            raise UsageError(f"{found} is not of a repair; move {staging} away and repair again")
