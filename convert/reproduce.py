"""Reproducing a part of a pack: named or drawn experts made again from the checkpoint, and held against its bytes.

Only the records that are looked at are read, and only their experts of the checkpoint, so a sample of a large pack
takes seconds. The trunk is made again as a whole, if that is asked for.
"""

import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from ..layout.comparing import differing
from ..layout.reader import Pack
from ..layout.tensorfile import TensorFileWriter
from ..manifests import digest
from ..manifests.diff import Change
from ..manifests.errors import MismatchError, StorageError
from ..manifests.files import read_exactly
from ..manifests.progress import Progress, Task
from ..manifests.report import Finding
from ..manifests.schema import Digest
from .again import Again
from .picks import Picks
from .pipeline import LayerRecords
from .trunk import trunk_blocks


class Reproduction(Struct, frozen=True):
    """What came of it: `source` and `files` of the checkpoint that are not the manifest's, and what differs.

    `ok` says that all that was made again is in the pack, and that the checkpoint's files are those of the manifest: by
    name, size and header, and by every byte if `source_digests`.
    """

    ok: bool
    pack_digest: Digest
    source: list[Change]
    files: list[Change]
    source_digests: bool
    findings: list[Finding]
    how: str
    records_compared: int
    records_total: int
    trunk_compared: bool
    bytes_compared: int
    seconds: float


def reproduce(pack: Pack, made: Again, picks: Picks, *, trunk: bool, jobs: int, progress: Progress) -> Reproduction:
    """Make the picked experts again, and the trunk too if `trunk`, and compare.

    Raises CorruptInputError and StorageError as building does.
    """
    start = time.monotonic()
    size = sum(pack.records[layer].stride * len(experts) for layer, experts in picks.experts.items())
    size += made.packing.plan.trunk_bytes if trunk else 0
    with progress.task("Making again", size) as task:
        found = list(_records(pack, made, picks, jobs, task))
        found += _trunk(pack, made, jobs, task) if trunk else []
    return Reproduction(
        ok=not (found or made.source or made.files),
        pack_digest=pack.digest,
        source=made.source,
        files=made.files,
        source_digests=made.source_digests,
        findings=found,
        how=picks.how,
        records_compared=picks.count,
        records_total=pack.model.num_layers * pack.model.num_experts,
        trunk_compared=trunk,
        bytes_compared=size,
        seconds=time.monotonic() - start,
    )


def require_reproduced(found: Reproduction, pack: Pack, source: str) -> None:
    """Raise MismatchError unless all was as it should be, saying first if the checkpoint is another one."""
    if found.ok:
        return
    differ, unread = _outcome(found)
    if unread and not (found.source or found.files or any(one.kind != "unreadable" for one in found.findings)):
        raise StorageError(f"{pack.path}: {differ}; look after the disk")
    if found.source or found.files:
        names = ", ".join(sorted({_file_name(change) for change in (*found.source, *found.files)})[:3])
        raise MismatchError(f"{source} is not what {pack.path} was made from ({names} differ); {differ}")
    raise MismatchError(f"{pack.path} is not what {source} and its recipe give: {differ}")


def _outcome(found: Reproduction) -> tuple[str, int]:
    """What came of it in words, and how many experts could not be read."""
    unread = {(one.layer, one.expert) for one in found.findings if one.kind == "unreadable"}
    where = {(one.layer, one.expert) for one in found.findings if one.layer is not None} - unread
    of = f"of {found.records_compared} experts"
    parts = [f"{len(where)} {of} differ"] if where else []
    parts += [f"{len(unread)} {of} cannot be read"] if unread else []
    words = ", and ".join(parts) or "every expert looked at is equal"
    if any(one.layer is None for one in found.findings):
        words += ", and the trunk differs"
    return words, len(unread)


def _file_name(change: Change) -> str:
    """Of a change in a weight file's size or digest, the file."""
    for part in (".size", ".header_blake3", ".sha256", ".name"):
        if change.field.endswith(part):
            return change.field.removesuffix(part)
    return change.field


def _records(pack: Pack, made: Again, picks: Picks, jobs: int, task: Task) -> Iterator[Finding]:
    records = LayerRecords(made.packing, jobs)
    for layer, experts in picks.experts.items():
        task.note(f"layer {layer + 1} of {pack.model.num_layers}")
        with closing(records.of(layer, experts)) as slots:
            for expert, slot in zip(experts, slots, strict=True):
                yield from _record(pack, layer, expert, slot.record)
                task.advance(len(slot.record))


def _record(pack: Pack, layer: int, expert: int, made: np.ndarray) -> Iterator[Finding]:
    file = pack.manifest.layers[layer].file
    try:
        stored = pack.stored_record(layer, expert)
    except StorageError as error:
        yield Finding(file, f"cannot be read: {error}", layer, expert, kind="unreadable")
        return
    sound = pack.is_sound(layer, expert, stored.data)
    for component in differing(pack.records[layer], stored, made):
        if sound:
            yield Finding(file, "is not what the source gives", layer, expert, component, kind="other")
        elif pack.is_sound(layer, expert, made.data):
            yield Finding(file, "is damaged; made again, it has its digest", layer, expert, component)
        else:
            yield Finding(file, "is damaged, and not what the source gives either", layer, expert, component)


class _Comparing:
    """Takes a file's bytes as if to write them, and tells whether those of an opened file are the same."""

    def __init__(self, pack: Pack, descriptor: int) -> None:
        self._pack, self._descriptor, self._offset = pack, descriptor, 0
        self.same = True

    def write(self, data: bytes | memoryview) -> None:
        stored = bytearray(len(data))
        read_exactly(self._descriptor, memoryview(stored), self._offset, self._pack.trunk.path)
        self._offset += len(data)
        self.same = self.same and np.array_equal(np.frombuffer(stored, np.uint8), np.frombuffer(data, np.uint8))


def _trunk(pack: Pack, made: Again, jobs: int, task: Task) -> Iterator[Finding]:
    plan, name = made.packing.plan, pack.manifest.trunk.file
    task.note("trunk")
    if pack.trunk.size != plan.trunk_bytes:
        yield Finding(name, f"has {pack.trunk.size} bytes, and the source gives {plan.trunk_bytes}", kind="other")
        return
    found = list(_compared_trunk(pack, made, jobs, task))
    if found and not _trunk_is_sound(pack):  # one digest for all of it: which tensor is damaged cannot be told
        found = [replace(one, problem=f"{one.problem}; the trunk is damaged", kind="damage") for one in found]
    yield from found


def _trunk_is_sound(pack: Pack) -> bool:
    listed = next(file for file in pack.manifest.files if file.name == pack.manifest.trunk.file)
    return digest.of_file(pack.folder / listed.name) == listed.blake3


def _compared_trunk(pack: Pack, made: Again, jobs: int, task: Task) -> Iterator[Finding]:
    plan, name = made.packing.plan, pack.manifest.trunk.file
    blocks = trunk_blocks(made.packing.trunk, made.packing.source.checkpoint, jobs)
    with digest.opened(pack.folder / name) as descriptor:
        sink = _Comparing(pack, descriptor)
        writer = TensorFileWriter(sink, plan.trunk)
        if not sink.same:
            yield Finding(name, "has another header than the source gives", kind="other")
            return
        for spec in plan.trunk:
            sink.same = True
            writer.write_blocks(spec.name, blocks.pop(spec.name))
            task.advance(spec.size)
            if not sink.same:
                yield Finding(name, "is not what the source gives", component=spec.name, kind="other")
