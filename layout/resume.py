"""Taking over a partial directory: which finished units an earlier run left there, proven by hashing them again."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..manifests import digest, inventory, layers, names
from ..manifests.errors import UsageError
from ..manifests.files import Folder
from ..manifests.progress import Progress, Task
from .atomic import REPLACEABLE, Reporting, publish, remove
from .journal import JOURNAL_FILE, Begun, Entry, Journal, LayerDone, SourceDone, TrunkDone, read_entries
from .plan import PackPlan


@dataclass
class Finished:
    """The units that are on the disk: layers with their component and record digests and SHA-256, the trunk's digests.

    `sources` are the weight files of the checkpoint that have been hashed, by name.
    """

    components: dict[int, dict[str, str]] = field(default_factory=dict)
    records: dict[int, bytes] = field(default_factory=dict)
    sums: dict[int, str] = field(default_factory=dict)
    trunk: digest.Digests | None = None
    sources: dict[str, SourceDone] = field(default_factory=dict)

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
    # A crash just before the last rename leaves a whole pack, misnamed, without its journal. (One set aside beside a
    # directory that is new, or has a journal, was left by a crash after another pack's last rename; it says nothing.)
    aside = set_aside(journal)
    with Reporting(journal):
        if aside.is_file() and not journal.exists() and any(journal.parent.iterdir()):
            publish(journal, aside.read_bytes(), REPLACEABLE)
            remove(aside)


def _check_begun(first: Entry, begun: Begun, partial: Path) -> None:
    if not isinstance(first, Begun) or first.identity != begun.identity:
        raise _of_another_build(partial)
    if first.fingerprint != begun.fingerprint:
        raise UsageError(f"{partial} was begun from other weights; remove it or choose another output")


def finished_units(partial: Path, plan: PackPlan, journal: Journal, progress: Progress, jobs: int) -> Finished:
    """What the journal claims and the bytes confirm, hashed on `jobs` threads; `progress` shows it."""
    claims = {entry.index: entry for entry in journal.entries if isinstance(entry, LayerDone) and _fits(entry, plan)}
    trunks = [entry.blake3 for entry in journal.entries if isinstance(entry, TrunkDone)]
    sources = [entry for entry in journal.entries if isinstance(entry, SourceDone) and entry == entry.sealed()]
    finished = Finished(sources={entry.name: entry for entry in sources})
    total = sum(map(plan.layer_bytes, claims)) + (plan.trunk_bytes if trunks else 0)
    if not total:
        return finished
    reading = progress.task("Checking what is already packed", total)
    with reading as task, Folder(partial) as folder, ThreadPoolExecutor(jobs) as pool:
        confirmed = pool.map(lambda entry: _confirmed_layer(folder, plan, entry, task), claims.values())
        for index, scan in zip(claims, confirmed, strict=True):
            if scan is not None:
                finished.records[index], finished.components[index] = _joined(scan), scan.columns
                finished.sums[index] = scan.sha256
        if trunks:
            finished.trunk = _confirmed_trunk(folder, plan, trunks[-1], task)
    return finished


def _fits(entry: LayerDone, plan: PackPlan) -> bool:
    if not 0 <= entry.index < plan.model.num_layers:
        return False
    return entry.components.keys() == {component.name for component in plan.records[entry.index].components}


def _confirmed_layer(partial: Folder, plan: PackPlan, entry: LayerDone, task: Task) -> layers.LayerScan | None:
    claimed = plan.layer(entry.index, entry.components)
    if inventory.fault(partial, claimed.file, plan.layer_bytes(entry.index)):
        return None
    scan = layers.scan(partial / claimed.file, entry.index, claimed, plan.model.num_experts, task.advance)
    # `columns` is empty if a record could not be read.
    sound = scan.columns == entry.components and digest.of_bytes(_joined(scan)).hex() == entry.records
    return scan if sound else None


def _joined(scan: layers.LayerScan) -> bytes:
    return b"".join(record for record in scan.records if record is not None)


def _confirmed_trunk(partial: Folder, plan: PackPlan, claimed: str, task: Task) -> digest.Digests | None:
    if inventory.fault(partial, names.TRUNK_FILE, plan.trunk_bytes):
        return None
    found = digest.both_of_file(partial / names.TRUNK_FILE, advance=task.advance)
    return found if found.blake3 == claimed else None


def _of_another_build(partial: Path) -> UsageError:
    return UsageError(
        f"{partial} was begun by another build (other checkpoint, recipe or version);"
        " remove it or choose another output"
    )
