"""Verification as the commands run it: digests, the structure that they cannot tell, and a state to go on from."""

from pathlib import Path

from ..manifests.errors import UsageError
from ..manifests.manifest import read_sealed, require_same_seal
from ..manifests.pace import Pace
from ..manifests.progress import Progress
from ..manifests.report import Report
from ..manifests.scope import Scope
from ..manifests.verify import FULL, verify
from .reader import Pack
from .statefile import StateFile


def check(
    pack: Path,
    *,
    threads: int,
    progress: Progress,
    scope: Scope = FULL,
    state: Path | None = None,
    pace: Pace | None = None,
) -> Report:
    """Verify a pack; with `state`, go on where an interrupted run stopped, and remove that file at the end.

    Raises as `manifests.verify` does, as `Pack.open` does if all bytes are as sealed but are no pack, MismatchError if
    the manifest is another one at the end, and UsageError for a state that lies in the pack or is not this work's.
    """
    if state is None:
        report = verify(pack, threads=threads, progress=progress, scope=scope, pace=pace)
    else:
        _require_outside(state, pack)
        begun = read_sealed(pack).pack_digest
        ledger = StateFile(state, begun, scope.name)
        report = verify(pack, threads=threads, progress=progress, scope=scope, ledger=ledger, pace=pace)
        ledger.remove()
        require_same_seal(pack, begun, report.pack_digest)
    if report.ok:
        with Pack.open(pack) as sound:
            require_same_seal(pack, report.pack_digest, sound.digest)
    return report


def _require_outside(state: Path, pack: Path) -> None:
    if pack.resolve() in state.resolve().parents:
        raise UsageError(f"{state} lies in the pack, where nothing else may; choose another place")
    if not state.parent.is_dir():
        raise UsageError(f"{state.parent} is not a folder to write into; make it or choose another place")
