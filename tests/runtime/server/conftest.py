"""One server of the shipped model for all tests that need no other."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from moe_run_program import built
from server.hosting import Hosted, hosted

from moepack.convert.shipped import CHECKPOINT


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("server") / "demo", CHECKPOINT)


@pytest.fixture(scope="session")
def server(demo: Path) -> Iterator[Hosted]:
    with hosted(demo) as server:
        yield server
