"""What a verification found, as data for `--json` and as sentences for a person."""

from collections import Counter
from pathlib import Path
from typing import Literal

from msgspec import Struct

from .errors import MismatchError, StorageError
from .schema import Digest

Kind = Literal["damage", "stray", "unreadable", "other"]


class Finding(Struct, frozen=True):
    """One thing that is wrong: in which file and, inside a layer file, in which layer, expert and component.

    `component` is a component's name, "padding", or several names joined by " or " when the digests cannot tell.
    `kind` is "damage" when the file is not what it should be, "stray" when it should not be there at all,
    "unreadable" when the system failed to read it, so that nothing is known about its bytes, and "other" when it has
    its digest, but its source and recipe give other bytes.
    """

    file: str
    problem: str
    layer: int | None = None
    expert: int | None = None
    component: str | None = None
    kind: Kind = "damage"

    @property
    def sentence(self) -> str:
        """The finding for a person."""
        parts = [f"layer {self.layer}"] if self.layer is not None else []
        parts += [f"expert {self.expert}"] if self.expert is not None else []
        parts += [self.component] if self.component is not None else []
        return f"{self.file}{': ' if parts else ''}{', '.join(parts)} {self.problem}"


class Report(Struct, frozen=True):
    """The outcome of verifying one pack; `pack_digest` is the BLAKE3 of its manifest's bytes.

    `scope` says what was to be read. Of `bytes_checked`, an earlier run of the same work had checked `bytes_earlier`.
    """

    ok: bool
    pack_digest: Digest
    findings: list[Finding]
    bytes_checked: int
    seconds: float
    scope: str
    bytes_total: int
    records_checked: int
    records_total: int
    bytes_earlier: int = 0


def require_intact(checked: Report, pack: Path) -> None:
    """Raise MismatchError for damage or strays, StorageError where reading failed, saying in a sentence what to do."""
    if checked.ok:
        return
    of_kind = Counter(finding.kind for finding in checked.findings)
    if of_kind["damage"]:
        again = "repair it, or pack the checkpoint again"
        raise MismatchError(f"{pack} is damaged: {_findings(of_kind['damage'])}; {again}")
    if of_kind["unreadable"]:
        raise StorageError(f"{pack} cannot be read: {_findings(of_kind['unreadable'])}; look after the disk")
    stray = [finding.file for finding in checked.findings]
    what = f"{stray[0]} does not belong there; remove it"
    if len(stray) > 1:
        what = f"{stray[0]} and {len(stray) - 1} more do not belong there; remove them"
    raise MismatchError(f"{pack} is intact, but {what}")


def _findings(count: int) -> str:
    return f"{count} finding{'s' if count > 1 else ''}"
