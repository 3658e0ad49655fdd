"""Taking over a partial directory: which finished units an earlier run left there, proven by hashing them again."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ..manifests import canonical, digest, names, schema
from ..manifests.errors import MoepackError, UsageError
from ..manifests.progress import Progress, Task
from .journal import JOURNAL_FILE, Begun, Entry, Journal, LayerDone, TrunkDone, read_entries
from .plan import PackPlan


@dataclass
class Finished:
    """The units that are on the disk: layers with their component and record digests, and the trunk's digest."""

    components: dict[int, dict[str, str]] = field(default_factory=dict)
    records: dict[int, bytes] = field(default_factory=dict)
    trunk: str | None = None

    def size(self, plan: PackPlan) -> int:
        """Bytes of all finished units."""
        return sum(map(plan.layer_bytes, self.records)) + (plan.trunk_bytes if self.trunk else 0)

    def files(self, plan: PackPlan) -> set[str]:
        """The names of all finished units."""
        return {plan.layer_file(index) for index in self.records} | ({names.TRUNK_FILE} if self.trunk else set())


def open_journal(partial: Path, plan: PackPlan) -> Journal:
    """The journal of `partial`, begun when the directory is new. Raises UsageError if it is not this plan's."""
    begun = Begun(plan.identity)
    entries = read_entries(partial / JOURNAL_FILE)
    if entries and entries[0] != begun:
        raise _of_another_build(partial)
    first: list[Entry] = []
    if not entries:
        others = any(path.name != JOURNAL_FILE for path in partial.iterdir())
        first = [begun, *_units_of_manifest(partial, plan)] if others else [begun]
    journal = Journal(partial / JOURNAL_FILE)
    for entry in first:
        journal.append(entry)
    return journal


def finished_units(partial: Path, plan: PackPlan, journal: Journal, progress: Progress) -> Finished:
    """What the journal claims and the bytes confirm; `progress` shows the hashing."""
    layers = {entry.index: entry for entry in journal.entries if isinstance(entry, LayerDone)}
    trunks = [entry.blake3 for entry in journal.entries if isinstance(entry, TrunkDone)]
    finished = Finished()
    total = sum(map(plan.layer_bytes, layers)) + (plan.trunk_bytes if trunks else 0)
    if not total:
        return finished
    with progress.task("Checking what is already packed", total) as task:
        for index, entry in layers.items():
            records = _confirmed_records(partial, plan, entry, task)
            if records is not None:
                finished.records[index], finished.components[index] = records, entry.components
        if trunks and _confirmed_trunk(partial, plan, trunks[-1], task):
            finished.trunk = trunks[-1]
    return finished


def _confirmed_records(partial: Path, plan: PackPlan, entry: LayerDone, task: Task) -> bytes | None:
    path = partial / plan.layer_file(entry.index)
    if not path.is_file() or path.stat().st_size != plan.layer_bytes(entry.index):
        return None
    stride = plan.records[entry.index].stride
    threads = os.cpu_count() or 1
    records = digest.of_records(path, stride, plan.model.num_experts, threads=threads, advance=task.advance)
    return records if digest.of_bytes(records).hex() == entry.records else None


def _confirmed_trunk(partial: Path, plan: PackPlan, claimed: str, task: Task) -> bool:
    path = partial / names.TRUNK_FILE
    return (
        path.is_file()
        and path.stat().st_size == plan.trunk_bytes
        and digest.of_file(path, advance=task.advance) == claimed
    )


def _units_of_manifest(partial: Path, plan: PackPlan) -> list[Entry]:
    # Removing the journal is the step before the last one; a crash between the two leaves a whole pack, misnamed.
    try:
        content = (partial / names.MANIFEST_FILE).read_bytes()
        manifest = msgspec.convert(canonical.decode(content, names.MANIFEST_FILE), schema.Manifest)
        components = {i: {c.name: c.blake3 for c in layer.components} for i, layer in enumerate(manifest.layers)}
        files = {file.name: file.blake3 for file in manifest.files}
        if plan.manifest(components, files) != manifest:
            raise _of_another_build(partial)
        records = (partial / names.DIGESTS_FILE).read_bytes()
    except (OSError, KeyError, msgspec.ValidationError, MoepackError) as error:
        raise _of_another_build(partial) from error
    size = digest.DIGEST_BYTES * plan.model.num_experts
    per_layer = [records[i * size : (i + 1) * size] for i in components]
    layers = [LayerDone(i, digest.of_bytes(per_layer[i]).hex(), components[i]) for i in components]
    return [*layers, TrunkDone(files[names.TRUNK_FILE])]


def _of_another_build(partial: Path) -> UsageError:
    return UsageError(
        f"{partial} was begun by another build (other checkpoint, recipe or version);"
        " remove it or choose another output"
    )
