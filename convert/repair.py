"""Repairing a pack from its checkpoint: only what is damaged is made again, and only what the manifest promises put in.

Records that still have their digest are taken from the damaged file, all others are made anew by the pack's recipe.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from msgspec import Struct

from ..layout.reader import Pack
from ..layout.repair import PackRepair
from ..manifests import digest, inventory, layers, names, schema, sums
from ..manifests.diff import MADE
from ..manifests.digest import DIGEST_BYTES
from ..manifests.errors import CorruptInputError, MismatchError, StorageError
from ..manifests.files import FilePlace, read_exactly, read_small
from ..manifests.progress import Progress, Task
from ..manifests.report import Report
from .again import Again
from .pipeline import LayerRecords
from .trunk import trunk_blocks

COPY_BYTES = 64 * 1024 * 1024  # more than any file that is copied


class Mended(Struct, frozen=True):
    """A file that was made anew, and of a layer file the experts that were made again from the source."""

    file: schema.PackFile
    experts: list[int] | None = None


def damaged_files(report: Report) -> list[str]:
    """The files that a verification found fault with, strays left out."""
    return list(dict.fromkeys(finding.file for finding in report.findings if finding.kind != "stray"))


def repair(
    path: Path, manifest: schema.Manifest, made: Again, damaged: list[str], *, jobs: int, progress: Progress
) -> list[Mended]:
    """Make the `damaged` files of the pack at `path` again and put them in place once all of them are made.

    Raises MismatchError if the source does not give what the manifest promises, StorageError if the disk fails, and
    what building raises: then the pack is as it was, unless the disk failed at the last renames. At the end raises what
    `Pack.open` does, if files that have their digests are no pack.
    """
    sizes = inventory.expected_sizes(manifest)
    needed = sum(sizes[name] for name in damaged)
    with (
        PackRepair.open(path, manifest, made.packing.plan, damaged) as staging,
        progress.task("Repairing", needed) as task,
    ):
        mended = _Mending(path, manifest, made, damaged, staging, jobs, task).all()
        staging.commit()
    Pack.open(path).close()
    return mended


@dataclass
class _Mending:
    path: Path
    manifest: schema.Manifest
    made: Again
    damaged: list[str]
    staging: PackRepair
    jobs: int
    task: Task

    def all(self) -> list[Mended]:
        digests = self._digests()
        mended = [Mended(name) for name in self.damaged if self._copied(name)]
        if self.manifest.trunk.file in self.damaged:
            self._trunk()
            mended.append(Mended(self.manifest.trunk.file))
        made: dict[int, bytes] = {}
        records = LayerRecords(self.made.packing, self.jobs)
        for index, layer in enumerate(self.manifest.layers):
            if layer.file in self.damaged:
                self.task.note(f"layer {index + 1} of {len(self.manifest.layers)}")
                experts, made[index] = self._layer(records, index, digests)
                mended.append(Mended(layer.file, experts))
        if digests is None:
            self._record_digests(made)
            mended.append(Mended(self.manifest.digests))
        if names.SUMS_FILE in self.damaged:
            self._sums()
            mended.append(Mended(names.SUMS_FILE))
        return mended

    def _digests(self) -> bytes | None:
        """The record digests, None if they have to be computed again."""
        if self.manifest.digests in self.damaged:
            return None
        size = inventory.expected_sizes(self.manifest)[self.manifest.digests]
        return read_small(self.staging.pack / self.manifest.digests, size)

    def _copied(self, name: str) -> bool:
        """Take a file over from the checkpoint, if it is one of those."""
        if name not in {file.name for file in self.manifest.files} - MADE:
            return False
        there = {path.name: path for path in self.made.packing.plan.copied}
        if name not in there:
            where = self.made.packing.source.checkpoint.origin.directory
            raise MismatchError(f"{where} has no {name}, which {self.path} was made with; nothing was changed")
        with self.staging.file(name) as sink:
            sink.write(read_small(there[name], COPY_BYTES, follow_links=True))
        return True

    def _trunk(self) -> None:
        packing = self.made.packing
        blocks = trunk_blocks(packing.trunk, packing.source.checkpoint, self.jobs)
        self.task.note("trunk")
        with self.staging.trunk() as sink:
            for spec in packing.plan.trunk:
                sink.write_blocks(spec.name, blocks.pop(spec.name))
                self.task.advance(spec.size)

    def _layer(self, records: LayerRecords, index: int, digests: bytes | None) -> tuple[list[int], bytes]:
        """Make a layer file; which of its experts were made from the source, and the digests of all its records."""
        layer, experts = self.manifest.layers[index], range(self.manifest.model.num_experts)
        size = len(experts) * DIGEST_BYTES
        promised = None if digests is None else digests[index * size : (index + 1) * size]
        sound = self._sound(index, layer, promised)
        missing = [expert for expert in experts if expert not in sound]
        with (
            self.staging.layer(index) as sink,
            closing(records.of(index, missing)) as made,
            _stored(self.staging.pack / layer.file, layer.stride, wanted=bool(sound)) as stored,
        ):
            for expert in experts:
                sink.append(stored(expert) if expert in sound else next(made).record)
                self.task.advance(layer.stride)
            self._require(index, sink.record_digests, promised)
        return missing, sink.record_digests

    def _sound(self, index: int, layer: schema.ExpertLayer, promised: bytes | None) -> set[int]:
        """The experts whose records are what was promised; none of them if nothing was, or the file is not there."""
        if promised is None:
            return set()
        try:
            scan = self._scan(index, layer)
        except (CorruptInputError, StorageError):
            return set()
        pairs = zip(scan.records, _split(promised), strict=True)
        return {expert for expert, (found, wanted) in enumerate(pairs) if found == wanted}

    def _scan(self, index: int, layer: schema.ExpertLayer) -> layers.LayerScan:
        file, experts = self.staging.pack / layer.file, self.manifest.model.num_experts
        return layers.scan(file, index, layer, experts, lambda size: None)

    def _sums(self) -> None:
        """Compute the SHA-256 of every other file, made or sound; so all are read once more."""
        listed = sums.listed_names(self.manifest)
        found = {name: digest.both_of_file(self.staging.place(name)).sha256 for name in listed}
        with self.staging.file(names.SUMS_FILE) as sink:
            sink.write(sums.render(found))

    def _require(self, index: int, found: bytes, promised: bytes | None) -> None:
        if promised is None or found == promised:
            return
        pairs = zip(_split(found), _split(promised), strict=True)
        expert = next(expert for expert, (one, other) in enumerate(pairs) if one != other)
        where = self.made.packing.source.checkpoint.origin.directory
        raise MismatchError(
            f"layer {index}, expert {expert}, made again from {where}, has another digest than {self.path} promises;"
            " nothing was changed"
        )

    def _record_digests(self, made: dict[int, bytes]) -> None:
        """Compute them of all layers: of those made anew as they were made, of the others from the pack."""
        with self.staging.file(self.manifest.digests) as sink:
            for index, layer in enumerate(self.manifest.layers):
                if index not in made:
                    scan = self._scan(index, layer)
                    made[index] = b"".join(record for record in scan.records if record is not None)
                sink.write(made[index])


def _split(digests: bytes) -> list[bytes]:
    return [digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)]


@contextmanager
def _stored(path: FilePlace, stride: int, *, wanted: bool) -> Iterator[Callable[[int], memoryview]]:
    """Reads records of a layer file, each valid until the next is asked for; the file is opened only if `wanted`."""
    buffer = memoryview(bytearray(stride))
    with digest.opened(path) if wanted else nullcontext(-1) as descriptor:

        def record(expert: int) -> memoryview:
            read_exactly(descriptor, buffer, expert * stride, path)
            return buffer

        yield record
