"""What the commands share: their exit codes, files that may not be given, and the two ways to show what was found."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from ..manifests import console
from ..manifests.console import print_json

EXIT_CODES = (
    "Exit codes: 0 done; 1 a pack or calibration file differs from its digests, its source or another pack; 2 the"
    " request cannot be met (usage, existing target); 3 a checkpoint, pack or calibration file is malformed; 4 the disk"
    " or the network failed, or another process holds the target; 5 not supported; 70 a defect of moe-pack; 130"
    " interrupted."
)

T = TypeVar("T")


def opened(opener: Callable[[Path], AbstractContextManager[T]], path: Path | None) -> AbstractContextManager[T | None]:
    """What a path opens, or None where there is no path."""
    return nullcontext() if path is None else opener(path)


def show(found: dict[str, Any], as_table: Any, *, json: bool) -> None:
    """On stdout: one JSON document, or a table of it."""
    if json:
        print_json(found)
    else:
        console.out.print(as_table(found))
