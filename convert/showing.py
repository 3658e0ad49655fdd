"""What the commands share: files that may not be given, and the two ways to show what was found."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from ..manifests import console
from ..manifests.console import print_json

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
