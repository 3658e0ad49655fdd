"""Some seconds of `make soak`, on the real program."""

from pathlib import Path

from extended.soak import faults, server, soak

STARTING = 0.25  # in so short a time memory is still being filled


def test_seconds_of_mixed_load(tmp_path: Path) -> None:
    with server(tmp_path) as (url, pid):
        outcome = soak(url, pid, 6)
    assert faults(outcome, STARTING) == []
    assert outcome.statuses[200] > 10
    assert outcome.statuses[400] > 5
    assert outcome.left
