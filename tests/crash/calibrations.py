"""A site where calibrations are made: `moe-pack calibrate` has a folder, files and a last rename of its own."""

from contextlib import AbstractContextManager
from pathlib import Path

from promises import Site, opened_site

TEXT = "The disk forgets what nobody asked it to keep. " * 8
OPTIONS = ("--tokens", 256, "--window", 16, "--threads", 1, "--device", "cpu")  # auto imports torch


def calibration_site(root: Path, source: Path, folder: Path) -> AbstractContextManager[Site]:
    """Like `opened_site`, of calibrations of `source` by a short text."""
    inside = root / "calibration"
    inside.mkdir()
    (inside / "text.txt").write_text(TEXT)
    return opened_site(inside, source, folder, "calibrate", source, "--text", inside / "text.txt", *OPTIONS, "-o")
