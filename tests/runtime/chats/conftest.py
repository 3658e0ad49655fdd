"""One pack of the shipped model for all chats, another whose template thinks, and answers that a script gives."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from chats.chatting import THINKING, Chatted, Script, chatted
from moe_run_program import built

from moepack.convert.shipped import CHECKPOINT
from moepack.runtime.chat import partner
from moepack.runtime.language import Language
from moepack.runtime.sampling import Allowed, Logits, Sampler, Sampling


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("chat") / "demo", CHECKPOINT)


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = tmp_path_factory.mktemp("chat") / "checkpoint"
    shutil.copytree(CHECKPOINT, checkpoint)
    (checkpoint / "chat_template.jinja").write_text(THINKING)
    return built(checkpoint.with_name("thinker"), checkpoint)


@pytest.fixture
def chat(demo: Path) -> Iterator[Chatted]:
    with chatted(demo) as chat:
        yield chat


@pytest.fixture
def thoughtful(thinker: Path) -> Iterator[Chatted]:
    with chatted(thinker) as chat:
        yield chat


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Call it with what answers shall say, one after another, whatever the model's logits are."""

    def script(language: Language, *texts: str) -> None:
        left = iter(texts)

        class Scripted(Sampler):
            def __init__(self, settings: Sampling) -> None:
                super().__init__(settings)
                tokenizer = language.tokenizer
                tokens = tokenizer.encode(next(left), add_special_tokens=False)
                self._left = iter([*tokens, min(tokenizer.end_tokens)])

            def choose(self, logits: Logits, allowed: Allowed | None = None) -> int:
                return next(self._left)

        monkeypatch.setattr(partner, "Sampler", Scripted)

    return script
