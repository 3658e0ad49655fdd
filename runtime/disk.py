"""How a disk is read fastest: found by a short measurement when a pack is first used on it, and remembered."""

from dataclasses import dataclass

from .streaming.files import Access


@dataclass(frozen=True)
class Tuning:
    """How to read records.

    `depth`: reads under way at once. `split`: pieces that one record is read in, side by side.
    `gigabytes_per_second` (10^9 bytes): what random records reached this way, None where nothing was measured.
    """

    access: Access
    depth: int
    split: int
    gigabytes_per_second: float | None
    measured: bool


DEFAULT = Tuning("buffered", 8, 1, None, measured=False)
