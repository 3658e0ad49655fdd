"""Fixtures of every room: the small checkpoints, each made once per session; and Ctrl-C as programs expect it."""

import signal

import pytest
from checkpoints import CheckpointMaker

# A shell that starts tests in the background has them ignore Ctrl-C, and so would the programs that they interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> CheckpointMaker:
    """Call it with a `Variant` for the directory of that checkpoint."""
    return CheckpointMaker(tmp_path_factory.mktemp("checkpoints"))
