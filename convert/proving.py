"""The commands that prove something of a pack: verify, scrub, diff, reproduce, repair, lock. Thin, as all are."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ..layout.checking import check
from ..layout.comparing import locate
from ..layout.reader import Pack
from ..layout.repair import remove_leftovers
from ..manifests.console import ConsoleProgress, say
from ..manifests.errors import MismatchError, UsageError
from ..manifests.manifest import read_sealed, require_same_seal
from ..manifests.pace import Pace, lower_priority
from ..manifests.quantities import parse_rate, parse_size
from ..manifests.report import Report, require_intact
from ..manifests.scope import Quick, Scope, parse_subset
from ..manifests.verify import FULL
from . import facts, proofs
from .again import again, with_source_digests
from .attesting import require_signed
from .calibration.file import CalibrationFile
from .checkpoint import Checkpoint
from .lock import read_lock, require_lock_name, write_lock
from .options import (
    BitsOption,
    BudgetOption,
    CalibrationOption,
    FormatOption,
    IdentityOption,
    IssuerOption,
    JobsOption,
    JsonOption,
    LockOption,
    MethodOption,
    NeededSourceOption,
    OfSourceOption,
    PackArgument,
    RecipeOption,
    SeedOption,
    SignatureOption,
    SignedByOption,
    SourceArgument,
    SourceDigestsOption,
    StateOption,
    SubsetOption,
    TrunkOption,
)
from .order import Order
from .picks import DEFAULT_SAMPLE, pick
from .plan import default_jobs, require_new, require_outside
from .repair import damaged_files
from .repair import repair as repair_pack
from .reproduce import reproduce as reproduce_pack
from .reproduce import require_reproduced
from .showing import opened, show
from .signing import Signed

JOBS = default_jobs()
SCRUB_SUFFIX = ".scrub.json"


def verify(
    pack: PackArgument,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read structure and small files only: no record, no trunk.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Read every byte (the default).")] = False,
    subset: SubsetOption = None,
    seed: SeedOption = None,
    state: StateOption = None,
    lock: LockOption = None,
    signed_by: SignedByOption = None,
    identity: IdentityOption = None,
    issuer: IssuerOption = None,
    signature: SignatureOption = None,
    jobs: JobsOption = JOBS,
    json: JsonOption = False,
) -> None:
    """Read a pack, or a part of it, and check every byte; name layer, expert and component of any damage."""
    scope = _scope(subset, seed, quick=quick, full=full)
    judged = set()
    if lock is not None:
        judged.add(_locked(lock, pack))
    signed = require_signed(pack, signed_by, identity, issuer, signature)
    if signed is not None:
        judged.add(signed.pack_digest)
    with _resumable(state):
        checked = check(pack, threads=jobs, progress=ConsoleProgress(), scope=scope, state=state)
    for earlier in judged:
        require_same_seal(pack, earlier, checked.pack_digest)
    _tell(checked, pack, signed, json=json)


def scrub(
    pack: PackArgument,
    rate: Annotated[str | None, typer.Option(help="Read no faster than this.", metavar="SIZE/s")] = None,
    subset: SubsetOption = None,
    seed: SeedOption = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where what is done is kept.", show_default=f"PACK{SCRUB_SUFFIX}, beside it"),
    ] = None,
    jobs: JobsOption = 1,
    json: JsonOption = False,
) -> None:
    """Verify in the background: from the disk, at low priority and a rate; interrupted, the same command goes on."""
    scope = _scope(subset, seed)
    pace = Pace(None if rate is None else parse_rate(rate), keep_cached=False)
    path = pack.resolve()
    kept = state or path.with_name(path.name + SCRUB_SUFFIX)
    say(f"priority: {', '.join(lower_priority())}; what is done is kept in {kept}")
    with _resumable(kept):
        checked = check(pack, threads=jobs, progress=ConsoleProgress(), scope=scope, state=kept, pace=pace)
    _tell(checked, pack, json=json)


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A pack's directory.", readable=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another's.", readable=False)],
    json: JsonOption = False,
) -> None:
    """Say what differs between two packs, and why: by their digests; weights are read only to find where."""
    found = locate(a, b)
    show({"a": str(a), "b": str(b), **msgspec.to_builtins(found)}, proofs.diff_table, json=json)
    if not found.difference.identical:
        raise MismatchError(f"{a} and {b} differ: {proofs.meanings(found.difference.meaning)}")


def reproduce(
    pack: PackArgument,
    source: OfSourceOption = None,
    experts: Annotated[
        str | None, typer.Option(metavar="L:E,...", help="These, as layer:expert, such as 12:345,13:0-7.")
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(metavar="N|x%", help="So many experts, drawn by --seed.", show_default=DEFAULT_SAMPLE),
    ] = None,
    seed: SeedOption = None,
    trunk: Annotated[bool, typer.Option("--trunk", help="Make the trunk again too.")] = False,
    source_digests: SourceDigestsOption = False,
    calibration: CalibrationOption = None,
    lock: LockOption = None,
    jobs: JobsOption = JOBS,
    json: JsonOption = False,
) -> None:
    """Make some experts of a pack again from its checkpoint, by its own recipe, and compare every byte."""
    locked = None if lock is None else read_lock(lock)
    if source is None:
        if locked is None:
            raise UsageError("say which checkpoint the pack was made from: --source SRC, or --lock FILE")
        source = locked.repository
    with Pack.open(pack) as sound:
        picks = pick(sound.model, experts, sample, seed)
        if locked is not None:
            locked.require_pack(pack, sound.digest)
        with Checkpoint.open(source) as checkpoint, opened(CalibrationFile.open, calibration) as calibrated:
            made = again(sound.manifest, pack, checkpoint, calibrated)
            if locked is not None:
                locked.require_arithmetic()
                locked.require_source(made.packing)
            if source_digests:
                made = with_source_digests(made, sound.manifest, ConsoleProgress())
            for remark in proofs.source_remarks(made, source, pack):
                say(remark)
            found = reproduce_pack(sound, made, picks, trunk=trunk, jobs=jobs, progress=ConsoleProgress())
        show({"pack": str(pack), "from": source, **msgspec.to_builtins(found)}, proofs.reproduce_table, json=json)
        require_reproduced(found, sound, source)


def repair(
    pack: PackArgument,
    source: NeededSourceOption,
    calibration: CalibrationOption = None,
    jobs: JobsOption = JOBS,
    json: JsonOption = False,
) -> None:
    """Verify a pack and make again, from its checkpoint, what is damaged; all digests come out, or nothing changes."""
    manifest, digests = read_sealed(pack)
    checked = check(pack, threads=jobs, progress=ConsoleProgress())
    require_same_seal(pack, digests.blake3, checked.pack_digest)
    damaged = damaged_files(checked)
    mended: list[Any] = []
    if not damaged:
        remove_leftovers(pack, manifest)
    else:
        with Checkpoint.open(source) as checkpoint, opened(CalibrationFile.open, calibration) as calibrated:
            require_outside(pack, checkpoint)
            made = again(manifest, pack, checkpoint, calibrated)
            for remark in proofs.source_remarks(made, source, pack):
                say(remark)
            mended = repair_pack(pack, manifest, made, damaged, jobs=jobs, progress=ConsoleProgress())
    stray = [finding for finding in checked.findings if finding.kind == "stray"]
    told = {"pack": str(pack), "pack_digest": checked.pack_digest, "mended": msgspec.to_builtins(mended)}
    show({**told, "stray": [finding.file for finding in stray]}, proofs.repair_table, json=json)
    require_intact(msgspec.structs.replace(checked, ok=not stray, findings=stray), pack)


def lock(
    source: SourceArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The lock to write; its name ends in .toml.")
    ],
    pack: Annotated[
        Path | None, typer.Option(metavar="PACK", help="Take the recipe from this pack, and name its digest.")
    ] = None,
    expert_format: FormatOption = None,
    method: MethodOption = None,
    trunk: TrunkOption = None,
    recipe: RecipeOption = None,
    bits: BitsOption = None,
    budget: BudgetOption = None,
    calibration: CalibrationOption = None,
    source_digests: SourceDigestsOption = False,
    jobs: JobsOption = JOBS,
    json: JsonOption = False,
) -> None:
    """Write a small file for a repository to commit: build, verify and reproduce with --lock follow it.

    With --pack, a sample of the pack is made again first.
    """
    require_new(out)
    require_lock_name(out)
    wanted = None if budget is None else parse_size(budget)
    order = Order(expert_format, method, trunk, recipe, bits, wanted)
    if pack is not None and order != Order():
        raise UsageError("--pack says what the recipe is; leave the other options of one out")
    if source_digests and pack is None:
        raise UsageError("--source-digests holds the checkpoint to a pack's manifest; name the pack with --pack")
    with Checkpoint.open(source) as checkpoint, opened(CalibrationFile.open, calibration) as calibrated:
        digest = None
        if pack is None:
            packing, _ = order.plan(checkpoint, calibrated, jobs=jobs, progress=ConsoleProgress())
        else:
            with Pack.open(pack) as sound:
                made = again(sound.manifest, pack, checkpoint, calibrated)
                if source_digests:
                    made = with_source_digests(made, sound.manifest, ConsoleProgress())
                packing, digest = made.packing, sound.digest
                picks = pick(sound.model, None, None, None)
                found = reproduce_pack(sound, made, picks, trunk=False, jobs=jobs, progress=ConsoleProgress())
                require_reproduced(found, sound, source)
        write_lock(out, packing, digest)
    show(proofs.of_lock(read_lock(out)), proofs.lock_table, json=json)


def _locked(lock: Path, pack: Path) -> str:
    """The pack's digest, which is the lock's."""
    found = read_sealed(pack).pack_digest
    read_lock(lock).require_pack(pack, found)
    return found


def _scope(subset: str | None, seed: int | None, *, quick: bool = False, full: bool = False) -> Scope:
    if quick + full + (subset is not None) > 1:
        raise UsageError("--quick, --full and --subset exclude each other; give one of them")
    if subset is not None:
        return parse_subset(subset, seed)
    if seed is not None:
        raise UsageError("--seed draws a --subset such as 5%; there is none")
    return Quick() if quick else FULL


@contextmanager
def _resumable(state: Path | None) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if state is not None:
            say(f"interrupted; the same command goes on from {state}")
        raise


def _tell(checked: Report, pack: Path, signed: Signed | None = None, *, json: bool) -> None:
    vouched = {"signed": msgspec.to_builtins(signed)} if signed is not None else {}
    show(facts.of_report(checked, pack) | vouched, proofs.verify_table, json=json)
    require_intact(checked, pack)
