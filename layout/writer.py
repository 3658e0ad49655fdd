"""Writing a pack so that a crash at any moment leaves something that the same command finishes with the same bytes.

Everything happens in `<target>.partial/`, which the writer holds locked. Files are published one by one (`atomic`),
each finished unit is journaled, the manifest comes last, and one rename turns the directory into the pack.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..manifests import canonical, digest, names, schema, sums
from ..manifests.errors import CorruptInputError, StorageError, UsageError
from ..manifests.files import gigabytes
from ..manifests.progress import Progress, Silent
from .atomic import (
    REPLACEABLE,
    TEMPORARY_SUFFIX,
    AtomicFile,
    Reporting,
    beside_removed,
    make_directory,
    publish,
    remove,
    rename,
    sync_directory,
)
from .journal import JOURNAL_FILE, Journal, LayerDone, Running, SourceDone, TrunkDone
from .lock import LockedDirectory
from .plan import PackPlan
from .reader import Pack
from .resume import Finished, finished_units, open_journal, set_aside
from .sinks import HashingSink, LayerSink, TrunkSink

COPY_BYTES = 4 * 1024 * 1024
MOST_NAME_BYTES = 255  # of a name, on every common file system
HASHING_THREADS = 3  # one for record digests, one for component digests, one for SHA-256


class PackWriter:
    """Writes one pack; the only thing that does. A context manager: leaving it without `commit` keeps the work."""

    def __init__(
        self, target: Path, plan: PackPlan, journal: Journal, finished: Finished, resources: ExitStack
    ) -> None:
        self.target = target
        self.partial = journal.path.parent
        self.plan = plan
        self._journal = journal
        self._finished = finished
        self._resources = resources
        self._pool = resources.enter_context(ThreadPoolExecutor(HASHING_THREADS))

    @classmethod
    def open(
        cls, target: Path, plan: PackPlan, progress: Progress | None = None, *, fingerprint: str = "", jobs: int = 2
    ) -> "PackWriter":
        """Begin or resume `target`; `progress` shows how finished units are hashed again, on `jobs` threads.

        `fingerprint` stands for the content of the source's weights, of which the plan knows only the headers.
        Raises UsageError if the target has no name or exists, or if its partial directory belongs to another plan or
        other weights, StorageError if another process is writing it or the disk has too little room.
        """
        partial = partial_directory(target)
        require_absent(target)
        if not os.path.lexists(partial):
            check_space(target.parent, plan.total_bytes)
        with ExitStack() as resources:
            resources.callback(LockedDirectory(partial).close)
            require_absent(target)
            journal = open_journal(partial, plan, fingerprint)
            resources.callback(journal.close)
            journal.append(Running(os.getpid()))
            finished = finished_units(partial, plan, journal, progress or Silent(), jobs)
            with Reporting(partial):
                sweep(partial, finished.files(plan) | {journal.path.name})
            check_space(partial, plan.total_bytes - finished.size(plan))
            return cls(target, plan, journal, finished, resources.pop_all())

    def missing_layers(self) -> list[int]:
        """The layers that are still to be written."""
        return [index for index in range(self.plan.model.num_layers) if index not in self._finished.records]

    @property
    def trunk_missing(self) -> bool:
        """Whether the trunk is still to be written."""
        return self._finished.trunk is None

    @contextmanager
    def layer(self, index: int) -> Iterator[LayerSink]:
        """Write layer `index`: append every expert's record in the block; published when the block ends well."""
        path = self.partial / self.plan.layer_file(index)
        with AtomicFile(path, self.plan.layer_bytes(index)) as file:
            sink = LayerSink(file, index, self.plan.records[index], self._pool)
            yield sink
        records, components = sink.record_digests, sink.component_digests
        self._journal.append(LayerDone(index, digest.of_bytes(records).hex(), components))
        self._finished.records[index], self._finished.components[index] = records, components
        self._finished.sums[index] = sink.sha256

    @contextmanager
    def trunk(self) -> Iterator[TrunkSink]:
        """Write the trunk: every tensor in the plan's order; published when the block ends well."""
        with AtomicFile(self.partial / names.TRUNK_FILE, self.plan.trunk_bytes) as file:
            sink = TrunkSink(file, self.plan.trunk, self._pool)
            yield sink
            trunk = sink.finish()
        self._journal.append(TrunkDone(trunk.blake3))
        self._finished.trunk = trunk

    @property
    def hashed_sources(self) -> Mapping[str, SourceDone]:
        """The checkpoint's weight files that are hashed already, by name."""
        return self._finished.sources

    def source_hashed(self, file: SourceDone) -> None:
        """A weight file of the checkpoint has been hashed; the next run need not do it again."""
        self._journal.append(file.sealed())
        self._finished.sources[file.name] = file

    def commit(self) -> schema.Manifest:
        """Add the copied files, the record digests, SHA256SUMS and the manifest, and give the pack its name.

        Raises ValueError if a unit is missing, CorruptInputError if a file to copy has changed since it was planned.
        """
        sources = {name: file.sha256 for name, file in self._finished.sources.items()}
        if self.missing_layers() or self._finished.trunk is None or self.plan.unhashed_sources - sources.keys():
            raise ValueError("a pack is committed only when all of its units are written")
        records = b"".join(self._finished.records[index] for index in range(self.plan.model.num_layers))
        files = {path.name: self._copy(path) for path in self.plan.copied}
        files[names.TRUNK_FILE] = self._finished.trunk
        files[names.DIGESTS_FILE] = self._publish(names.DIGESTS_FILE, records)
        files[names.SUMS_FILE] = self._publish(names.SUMS_FILE, self._sums(files))
        listed = {name: found.blake3 for name, found in files.items()}
        manifest = self.plan.manifest(self._finished.components, listed, sources)
        self._publish(names.MANIFEST_FILE, canonical.encode(manifest))
        Pack.open(self.partial).close()  # what our own reader refuses never gets a pack's name
        self._promote()
        return manifest

    def close(self) -> None:
        """Release the lock; what is finished stays for the next run."""
        self._resources.close()

    def __enter__(self) -> "PackWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _publish(self, name: str, content: bytes) -> digest.Digests:
        publish(self.partial / name, content)
        return digest.both_of_bytes(content)

    def _sums(self, files: Mapping[str, digest.Digests]) -> bytes:
        layers = {self.plan.layer_file(index): found for index, found in self._finished.sums.items()}
        return sums.render(layers | {name: found.sha256 for name, found in files.items()})

    def _copy(self, path: Path) -> digest.Digests:
        planned = self.plan.copied_files[path.name]
        with path.open("rb") as source, AtomicFile(self.partial / path.name, planned.size) as file:
            sink = HashingSink(file, self._pool)
            while chunk := source.read(COPY_BYTES):
                sink.write(chunk)
            copied = sink.digests()
            if copied.blake3 != planned.blake3:
                raise CorruptInputError(f"{path} changed while it was being packed; run the same command again")
        return copied

    def _promote(self) -> None:
        # The journal is copied, not moved: a file system that keeps no order could lose both of a moved one's names.
        aside = set_aside(self._journal.path)
        publish(aside, self._journal.path.read_bytes(), REPLACEABLE)
        with Reporting(self.target):
            remove(self._journal.path)
            sync_directory(self.partial)
            rename(self.partial, self.target)
        with beside_removed(self.target):
            sync_directory(self.target.parent)
            remove(aside)


def partial_directory(target: Path) -> Path:
    """Where the pack `target` is made: beside it. Raises UsageError for a name that is none, or too long for that."""
    if target.name in ("", ".."):
        raise UsageError(f"{str(target)!r} names no new directory; give the pack a name")
    partial = target.with_name(target.name + ".partial")
    longest = set_aside(partial / JOURNAL_FILE).name + TEMPORARY_SUFFIX
    excess = len(os.fsencode(longest)) - MOST_NAME_BYTES
    if excess > 0:
        raise UsageError(f"{target.name} is too long a name by {excess} bytes: its journal's would not fit; shorten it")
    return partial


def require_absent(target: Path) -> None:
    """Raise UsageError if there is anything at `target`, even a dangling link."""
    if os.path.lexists(target):
        raise UsageError(f"{target} exists; remove it or choose another output")


def sweep(partial: Path, keep: set[str]) -> None:
    """Remove what earlier runs left unfinished, so that only the files named in `keep` remain."""
    experts = partial / names.EXPERTS_FOLDER
    if os.path.lexists(experts) and not is_directory(experts):
        raise UsageError(f"{experts} is not a directory; remove {partial} or choose another output")
    make_directory(experts)
    for path in [*partial.iterdir(), *experts.iterdir()]:
        if path == experts or str(path.relative_to(partial)) in keep:
            continue
        if is_directory(path):
            raise UsageError(f"{path} is a directory, which no pack has; remove it and run the same command again")
        remove(path)
    sync_directory(partial)


def is_directory(path: Path) -> bool:
    """Whether `path` is itself a directory, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def check_space(folder: Path, needed: int, what: str = "this pack") -> None:
    """Raise StorageError unless the disk that holds `folder` has `needed` bytes free for `what`."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UsageError(f"{folder} is not a folder to write into: {error.strerror}") from error
    if free < needed:
        raise StorageError(
            f"{folder} has {gigabytes(free)} free and {what} needs {gigabytes(needed)} more;"
            " make room and run the same command again"
        )
