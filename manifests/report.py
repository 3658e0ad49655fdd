"""What a verification found, as data for `--json` and as sentences for a person."""

from typing import Literal

from msgspec import Struct

Kind = Literal["damage", "stray", "unreadable"]


class Finding(Struct, frozen=True):
    """One thing that is wrong: in which file and, inside a layer file, in which layer, expert and component.

    `component` is a component's name, "padding", or several names joined by " or " when the digests cannot tell.
    `kind` is "damage" when the file is not what it should be, "stray" when it should not be there at all, and
    "unreadable" when the system failed to read it, so that nothing is known about its bytes.
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
    """The outcome of verifying one pack; `pack_digest` is the BLAKE3 of its manifest's bytes."""

    ok: bool
    pack_digest: str
    findings: list[Finding]
    bytes_checked: int
    seconds: float
