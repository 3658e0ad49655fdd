"""Fixtures of every room: the small checkpoints, each made once per session."""

import pytest
from checkpoints import CheckpointMaker


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> CheckpointMaker:
    """Call it with a `Variant` for the directory of that checkpoint."""
    return CheckpointMaker(tmp_path_factory.mktemp("checkpoints"))
