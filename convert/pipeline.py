"""The pipeline: from an opened checkpoint to a committed pack, layer by layer, resumable at any moment."""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..layout.journal import SourceDone
from ..layout.writer import PackWriter
from ..manifests.errors import CorruptInputError
from ..manifests.progress import Progress, Task
from .experts import ExpertPacker, Slot, Taken
from .fingerprint import fingerprint
from .plan import Packing
from .sources import SourceHashing, is_current
from .trunk import Blocks, trunk_blocks


class LayerRecords:
    """Makes records of any layer of a packing, on `jobs` threads; slots serve every layer of the same layout."""

    def __init__(self, packing: Packing, jobs: int) -> None:
        self._packing, self._jobs = packing, jobs
        self._packer: ExpertPacker | None = None

    def of(self, layer: int, experts: Iterable[int]) -> Generator[Slot, None, None]:
        """The records of `experts` of a layer, in that order, as `ExpertPacker.packed` makes them."""
        packing = self._packing
        layout = packing.plan.records[layer]
        methods = {name: coding.method for name, coding in packing.codings[layer].items()}
        if self._packer is None or (self._packer.layout, self._packer.methods) != (layout, methods):
            self._packer = ExpertPacker(packing.source.checkpoint, layout, methods, self._jobs)
        statistics = packing.calibration.layer(layer) if packing.calibration is not None else None
        return self._packer.packed(packing.source.experts[layer], experts, statistics)


@dataclass(frozen=True)
class Built:
    """What a run has done: how many layers it packed itself, and which methods their matrices took."""

    layers: int
    taken: Counter[Taken]


def build(packing: Packing, target: Path, *, jobs: int, progress: Progress) -> Built:
    """Write the pack `target`, on `jobs` threads, or finish what an interrupted run has left of it.

    Raises UsageError if the target exists, StorageError if the disk fails or fills, CorruptInputError naming the
    tensor if a weight is not finite or naming the checkpoint if it changed meanwhile. After any other error, or a
    kill, the same call goes on where this one stopped, provided that the checkpoint's weights are still the same.
    """
    checkpoint = packing.source.checkpoint
    begun = fingerprint(checkpoint)
    with PackWriter.open(target, packing.plan, progress, fingerprint=begun, jobs=jobs) as writer:
        layers, remedy = writer.missing_layers(), f"remove {writer.partial} and build again"
        with SourceHashing(checkpoint.files, writer.hashed_sources, remedy) as hashing:
            with progress.task("packing", _total(packing), _total(packing) - _missing(packing, writer)) as task:
                if writer.trunk_missing:
                    task.note("trunk")
                    _write_trunk(packing, writer, jobs, task)
                taken = _write_layers(packing, writer, layers, jobs, task, hashing)
            _note_hashed(writer, hashing.rest(progress))
        hashed = writer.hashed_sources
        unchanged = all(is_current(file, hashed[file.path.name]) for file in checkpoint.files)
        if not unchanged or fingerprint(checkpoint) != begun:
            raise CorruptInputError(f"{checkpoint.origin.directory} changed while it was read; {remedy}")
        writer.commit()
        return Built(len(layers), taken)


def _note_hashed(writer: PackWriter, files: Iterable[SourceDone]) -> None:
    for file in files:
        writer.source_hashed(file)


def _total(packing: Packing) -> int:
    return packing.plan.expert_bytes + packing.plan.trunk_bytes


def _missing(packing: Packing, writer: PackWriter) -> int:
    trunk = packing.plan.trunk_bytes if writer.trunk_missing else 0
    return trunk + sum(map(packing.plan.layer_bytes, writer.missing_layers()))


def _write_layers(
    packing: Packing, writer: PackWriter, layers: list[int], jobs: int, task: Task, hashing: SourceHashing
) -> Counter[Taken]:
    taken: Counter[Taken] = Counter()
    records = LayerRecords(packing, jobs)
    for layer in layers:
        task.note(f"layer {layer + 1} of {packing.source.model.num_layers}")
        taken += _write_layer(records, writer, layer, task)
        _note_hashed(writer, hashing.done())
    return taken


def _write_layer(records: LayerRecords, writer: PackWriter, layer: int, task: Task) -> Counter[Taken]:
    taken: Counter[Taken] = Counter()
    experts = range(writer.plan.model.num_experts)
    with writer.layer(layer) as sink, closing(records.of(layer, experts)) as packed:
        for slot in packed:
            sink.append(slot.record)
            taken.update(slot.taken)
            task.advance(len(slot.record))
    return taken


def _write_trunk(packing: Packing, writer: PackWriter, jobs: int, task: Task) -> None:
    blocks = trunk_blocks(packing.trunk, packing.source.checkpoint, jobs)
    with writer.trunk() as sink:
        for spec in packing.plan.trunk:
            sink.write_blocks(spec.name, _counted(blocks.pop(spec.name), task))


def _counted(blocks: Blocks, task: Task) -> Iterator[np.ndarray]:
    for block in blocks:
        yield block
        task.advance(block.nbytes)
