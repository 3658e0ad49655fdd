"""Damage that both checkpoints and packs can suffer."""

from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], None]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
