"""One server of the shipped model for all tests that need no other."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moe_run_program import built
from server.hosting import Hosted, hosted

from moepack.convert.shipped import CHECKPOINT
from moepack.runtime.sampling import Allowed, Logits, Sampler, Sampling
from moepack.runtime.server import service


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("server") / "demo", CHECKPOINT)


@pytest.fixture(scope="session")
def server(demo: Path) -> Iterator[Hosted]:
    with hosted(demo) as server:
        yield server


Script = Callable[[str], None]


@pytest.fixture
def scripted(server: Hosted, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Call it with what every answer of the server shall say, token by token, whatever the model's logits are."""
    tokenizer = server.service.language.tokenizer

    def script(text: str) -> None:
        tokens = [*tokenizer.encode(text, add_special_tokens=False), min(tokenizer.end_tokens)]

        class Scripted(Sampler):
            def __init__(self, settings: Sampling) -> None:
                super().__init__(settings)
                self._left = iter(tokens)

            def choose(self, logits: Logits, allowed: Allowed | None = None) -> int:
                return next(self._left)

        monkeypatch.setattr(service, "Sampler", Scripted)

    return script
