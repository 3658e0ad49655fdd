"""Conversations go on from where they were: in one server, and in the next one with the same state."""

from pathlib import Path
from typing import Any

import pytest
from server.hosting import QUESTION, WEATHER, Hosted, function, hosted

from moepack.manifests.errors import StorageError

SYSTEM = {"role": "system", "content": "You answer questions about the weather. " * 6}
FIRST: list[dict[str, Any]] = [SYSTEM, {"role": "user", "content": QUESTION}]


def asked(server: Hosted, messages: list[dict[str, Any]]) -> tuple[str | None, int, int]:
    """What was said, the prompt's tokens, and how many of them were remembered."""
    answer = server.openai().chat.completions.create(
        model="demo", messages=messages, temperature=0, max_tokens=30, tools=[function(WEATHER)], tool_choice="none"
    )
    details: Any = answer.usage.prompt_tokens_details
    return answer.choices[0].message.content, answer.usage.prompt_tokens, details.cached_tokens


def test_a_conversation_goes_on_as_it_would_from_scratch(demo: Path, tmp_path: Path) -> None:
    with hosted(demo, prefix_bytes=0) as server:
        said, prompt, cached = asked(server, FIRST)
        more = [*FIRST, {"role": "assistant", "content": said}, {"role": "user", "content": "And in Oslo?"}]
        scratch = asked(server, more)
        assert cached == scratch[2] == 0
    with hosted(demo, state=tmp_path) as server:
        assert asked(server, FIRST) == (said, prompt, 0)
        text, size, cached = asked(server, more)
        assert (text, size) == scratch[:2]
        assert prompt <= cached < size
        _, _, system = asked(server, [SYSTEM, {"role": "user", "content": "Who are you?"}])
        assert system > len(SYSTEM["content"]) // 8  # system message and tools were worth remembering
    with hosted(demo, state=tmp_path) as server:
        again = asked(server, more)
        assert again[:2] == scratch[:2]
        assert again[2] >= prompt


def test_a_state_has_one_server(demo: Path, tmp_path: Path) -> None:
    with (
        hosted(demo, state=tmp_path),
        pytest.raises(StorageError, match="another moe-run"),
        hosted(demo, state=tmp_path),
    ):
        pass


def test_states_that_are_no_files_any_more_are_computed_again(demo: Path, tmp_path: Path) -> None:
    with hosted(demo, state=tmp_path) as server:
        said = asked(server, FIRST)
    with hosted(demo, state=tmp_path) as server:
        files = list(tmp_path.rglob("*.safetensors"))
        assert files
        for state in files:
            state.unlink()
            state.mkdir()
        assert asked(server, FIRST) == said
        assert asked(server, FIRST)[:2] == said[:2]
        assert not server.service.scheduler.closed
