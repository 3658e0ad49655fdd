"""Mending a published pack: files made anew beside it, proven by the manifest's digests, then put in place by renames.

No file of the pack is ever opened for writing. Until every new file is complete, durable, has its digests and has been
read back, nothing of the pack changes; a crash or an error between the renames leaves some files mended, which the same
command goes on from. The manifest is never rewritten.
"""

import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..manifests import digest, inventory, names, schema, sums
from ..manifests.errors import CorruptInputError, MismatchError, StorageError, UsageError
from ..manifests.files import FilePlace, Folder
from .atomic import (
    TEMPORARY_SUFFIX,
    AtomicFile,
    Reporting,
    make_directory,
    publish,
    remove,
    remove_directory,
    rename,
    sync_directory,
)
from .lock import LockedDirectory
from .plan import PackPlan
from .sinks import HashingSink, LayerSink, TrunkSink
from .writer import HASHING_THREADS, check_space, is_directory, sweep

SUFFIX = ".repair"
MARKER = ".moe-pack-repair"  # what tells the folder of a repair from one of the same name


class PackRepair:
    """Makes files of the pack at `path` anew, in `<path>.repair/`, which is locked. A context manager.

    Leaving it without `commit` removes what was made. Every file must come out with the digest in the manifest, and
    the SHA-256 in a sound SHA256SUMS, or MismatchError is raised. `pack` is the pack's opened directory.
    """

    def __init__(self, path: Path, manifest: schema.Manifest, plan: PackPlan, resources: ExitStack) -> None:
        self.path, self.manifest, self.plan = path, manifest, plan
        self.staging = _staging(path)
        self.pack = resources.enter_context(Folder(path))
        self._listed_sums = _sums(self.pack, manifest)
        self._made: dict[str, str] = {}  # with the SHA-256 of what was written
        self._pool = resources.enter_context(ThreadPoolExecutor(HASHING_THREADS))
        self._resources = resources

    @classmethod
    def open(cls, path: Path, manifest: schema.Manifest, plan: PackPlan, damaged: Collection[str]) -> "PackRepair":
        """Begin with the files that are to be made.

        Raises UsageError if `<path>.repair` holds anything else or a directory is where a file belongs, StorageError if
        another process repairs the pack, a folder cannot be written to, or the disk has too little room.
        """
        _require_places(path, damaged)
        sizes = inventory.expected_sizes(manifest)
        with ExitStack() as resources:
            repair = cls(path, manifest, plan, resources)
            resources.callback(LockedDirectory(repair.staging).close)
            _require_ours(repair.staging, manifest)  # or it would be swept away
            publish(repair.staging / MARKER, b"")
            with Reporting(repair.staging):
                sweep(repair.staging, {MARKER})
            check_space(repair.staging, sum(sizes[name] for name in damaged), "this repair")
            repair._resources = resources.pop_all()
            return repair

    @contextmanager
    def layer(self, index: int) -> Iterator[LayerSink]:
        """Make layer `index`: append every expert's record in the block."""
        listed = self.manifest.layers[index]
        with AtomicFile(self.staging / listed.file, self.plan.layer_bytes(index)) as file:
            sink = LayerSink(file, index, self.plan.records[index], self._pool)
            yield sink
            promised = {part.name: part.blake3 for part in listed.components}
            self._require(listed.file, sink.sha256, holds=sink.component_digests == promised)
        self._made[listed.file] = sink.sha256

    @contextmanager
    def trunk(self) -> Iterator[TrunkSink]:
        """Make the trunk: every tensor in the plan's order."""
        listed = self._listed(self.manifest.trunk.file)
        with AtomicFile(self.staging / listed.name, self.plan.trunk_bytes) as file:
            sink = TrunkSink(file, self.plan.trunk, self._pool)
            yield sink
            found = sink.finish()
            self._require(listed.name, found.sha256, holds=found.blake3 == listed.blake3)
        self._made[listed.name] = found.sha256

    @contextmanager
    def file(self, name: str) -> Iterator[HashingSink]:
        """Make any other file: write all of it in the block."""
        listed = self._listed(name)
        with AtomicFile(self.staging / name, None) as file:
            sink = HashingSink(file, self._pool)
            yield sink
            found = sink.digests()
            self._require(name, found.sha256, holds=found.blake3 == listed.blake3)
        self._made[name] = found.sha256

    def place(self, name: str) -> FilePlace:
        """Where a file of the mended pack is now: beside the pack if it was made, in it otherwise."""
        return self.staging / name if name in self._made else self.pack / name

    def commit(self) -> None:
        """Read back all that was made, and put it in its place.

        Raises StorageError if a file is not what was written, and then nothing has changed, or if the system refuses.
        """
        for name, written in self._made.items():
            if digest.both_of_file(self.staging / name).sha256 != written:
                raise StorageError(f"{name}, made again, reads back as other bytes; nothing was changed: mind the disk")
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

    def _require(self, name: str, sha256: str, *, holds: bool) -> None:
        if holds and self._listed_sums.get(name, sha256) != sha256:
            raise MismatchError(
                f"{name}, made again, has its digest, and {self.path / names.SUMS_FILE}, which the manifest vouches"
                " for, gives it another SHA-256; nothing was changed. The pack contradicts itself: build it again"
            )
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
        sweep(staging, {MARKER})
        remove_directory(staging / names.EXPERTS_FOLDER)
        sync_directory(staging)  # the marker goes last, whenever power is lost
        remove(staging / MARKER)
        sync_directory(staging)
        remove_directory(staging)
        sync_directory(staging.parent)


def _sums(pack: Folder, manifest: schema.Manifest) -> dict[str, str]:
    """What the files' SHA-256 have to be; empty if the list is damaged, and so is made again itself."""
    try:
        return sums.read(pack, manifest) or {}
    except CorruptInputError:
        return {}


def _require_places(path: Path, damaged: Collection[str]) -> None:
    """Find before all the work what the renames would fail of after it."""
    experts = path / names.EXPERTS_FOLDER
    if os.path.lexists(experts) and not is_directory(experts):
        raise UsageError(f"{experts} is not a directory; remove it and repair again")
    for name in damaged:
        if is_directory(path / name):
            raise UsageError(f"{path / name} is a directory, where a file belongs; remove it and repair again")
    inside = {(path / name).parent for name in damaged}
    for folder in sorted({_staging(path).parent, *(one if one.exists() else path for one in inside)}):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StorageError(f"{folder} cannot be written to; give yourself permission to, and repair again")


def _require_ours(staging: Path, manifest: schema.Manifest) -> None:
    """What an interrupted repair leaves is known by its marker and its names; anything else is somebody's."""
    there = {str(found.relative_to(staging)) for found in staging.rglob("*")}
    if there <= {f"{MARKER}{TEMPORARY_SUFFIX}"}:
        return  # nothing, or a repair that had hardly begun
    known = {f"{name}{suffix}" for name in inventory.expected_sizes(manifest) for suffix in ("", TEMPORARY_SUFFIX)}
    known |= {names.EXPERTS_FOLDER, MARKER, f"{MARKER}{TEMPORARY_SUFFIX}"}
    for name in sorted(there - known if MARKER in there else there):
        raise UsageError(f"{staging / name} is not of a repair; move {staging} away and repair again")
