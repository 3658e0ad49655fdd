"""Taking over a partial directory: which finished units an earlier run left there, proven by hashing them again."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ..manifests import digest, names
from ..manifests.errors import UsageError
from ..manifests.progress import Progress, Task
from .atomic import Reporting
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


def open_journal(partial: Path, plan: PackPlan, fingerprint: str) -> Journal:
    """The journal of `partial`, begun when the directory is new.

    Raises UsageError if it is not this plan's, or of weights with another `fingerprint`.
    """
    path = partial / JOURNAL_FILE
    _bring_back(path)
    entries = read_entries(path)
    if entries:
        _check_begun(entries[0], Begun(plan.identity, fingerprint), partial)
    elif any(other.name != JOURNAL_FILE for other in partial.iterdir()):
        raise _of_another_build(partial)
    journal = Journal(path)
    if not entries:
        journal.append(Begun(plan.identity, fingerprint))
    return journal


def set_aside(journal: Path) -> Path:
    """Where the journal waits while its directory, now a pack, gets the pack's name: beside that directory."""
    return journal.parent.with_name(f"{journal.parent.name}.{JOURNAL_FILE}")


def _bring_back(journal: Path) -> None:
    # A crash just before the last rename leaves a whole pack, misnamed, without its journal. In a directory that has
    # one, or that is new, a journal set aside is what a crash just after that rename left.
    aside, new = set_aside(journal), not any(journal.parent.iterdir())
    with Reporting(journal):
        if aside.is_file() and not journal.exists() and not new:
            aside.rename(journal)
        else:
            aside.unlink(missing_ok=True)


def _check_begun(first: Entry, begun: Begun, partial: Path) -> None:
    if not isinstance(first, Begun) or first.identity != begun.identity:
        raise _of_another_build(partial)
    if first.fingerprint != begun.fingerprint:
        raise UsageError(f"{partial} was begun from other weights; remove it or choose another output")


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


def _of_another_build(partial: Path) -> UsageError:
    return UsageError(
        f"{partial} was begun by another build (other checkpoint, recipe or version);"
        " remove it or choose another output"
    )
