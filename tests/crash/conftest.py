"""One site for all tests of crashes: its packs lie in memory where that is a file system, the checkpoint does not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import reason_for_none
from promises import Site, make_checkpoint, opened_site

MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if reason := reason_for_none():
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("crash")
    # Hundreds of builds wait for no disk there; and a target is then on another file system than the source and TMPDIR.
    folder = MEMORY / root.parent.name / root.name if MEMORY.is_dir() else root / "packs"
    folder.parent.mkdir(exist_ok=True)
    with opened_site(root, make_checkpoint(root / "checkpoint"), folder) as opened:
        yield opened
    if folder.parent.parent == MEMORY:
        folder.parent.rmdir()
