"""A template that thinks, over all three protocols: thinking is told apart, counted, and gone from the next prompt."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from front import TRAINED, needs_trained_model
from moe_run_program import built
from server.conftest import Script
from server.hosting import MESSAGE, QUESTION, WEATHER, Hosted, function, hosted

from moepack.convert.shipped import CHECKPOINT

ASKED: dict[str, Any] = {"model": "thinker", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
PROMPT = "{{- '<|im_start|>assistant\\n' }}"
THINKS = "{{- '<|im_start|>assistant\\n' + ('' if enable_thinking is false else '<think>\\n') }}"
THOUGHT = "Paris, <tool_call>, tomorrow.\n</think>"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    folder = tmp_path_factory.mktemp("thinking")
    shutil.copytree(CHECKPOINT, folder / "checkpoint")
    template = folder / "checkpoint" / "chat_template.jinja"
    source = template.read_text()
    assert source.count(PROMPT) == 1
    template.write_text(source.replace(PROMPT, THINKS))
    with hosted(built(folder / "thinker", folder / "checkpoint")) as server:
        yield server


def tokens(server: Hosted, text: str) -> int:
    return len(server.service.language.tokenizer.encode(text, add_special_tokens=False))


def test_a_chat_thinks_and_goes_on_without_its_thoughts(thinker: Hosted, scripted: Script) -> None:
    scripted(f"{THOUGHT}\n\nSunny.")
    client = thinker.openai()
    whole = client.chat.completions.create(**ASKED)
    message: Any = whole.choices[0].message
    assert (message.reasoning_content, message.content) == ("Paris, <tool_call>, tomorrow.", "Sunny.")
    assert whole.usage.completion_tokens_details.reasoning_tokens == tokens(thinker, THOUGHT)
    assert whole.usage.completion_tokens == tokens(thinker, f"{THOUGHT}\n\nSunny.")
    chunks = list(client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}))
    deltas: list[Any] = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == message.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert chunks[-1].usage.completion_tokens_details == whole.usage.completion_tokens_details
    said = {"role": "assistant", "content": message.content, "reasoning_content": message.reasoning_content}
    more = [*ASKED["messages"], said, {"role": "user", "content": "And in Oslo?"}]
    cached = client.chat.completions.create(**{**ASKED, "messages": more}).usage.prompt_tokens_details.cached_tokens
    assert cached == whole.usage.prompt_tokens - tokens(thinker, "<|im_start|>assistant\n<think>\n")


def test_thinking_that_is_cut_is_all_that_there_is(thinker: Hosted, scripted: Script) -> None:
    scripted(THOUGHT)
    answer = thinker.openai().chat.completions.create(**ASKED, max_tokens=3)
    assert answer.choices[0].message.content is None
    assert answer.usage.completion_tokens_details.reasoning_tokens == answer.usage.completion_tokens == 3


def test_a_chat_that_shall_not_think_does_not(thinker: Hosted, scripted: Script) -> None:
    scripted("Sunny.")
    answer = thinker.openai().chat.completions.create(**ASKED, reasoning_effort="none")
    assert answer.choices[0].message.content == "Sunny."
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_several_calls_after_a_thought(thinker: Hosted, scripted: Script) -> None:
    scripted(f"{THOUGHT}\n\n{CALL % 'Paris'}\n{CALL % 'Oslo'}")
    tools = [function(WEATHER), function(MESSAGE)]
    choice = thinker.openai().chat.completions.create(**ASKED, tools=tools).choices[0]
    assert [json.loads(call.function.arguments)["city"] for call in choice.message.tool_calls] == ["Paris", "Oslo"]
    assert choice.finish_reason == "tool_calls"
    offered: Any = [{"name": tool["name"], "input_schema": tool["parameters"]} for tool in (WEATHER, MESSAGE)]
    asked = {key: value for key, value in ASKED.items() if key != "temperature"}
    message = thinker.anthropic().messages.create(**asked, max_tokens=300, tools=offered)
    assert [block.type for block in message.content] == ["thinking", "tool_use", "tool_use"]
    assert [block.input for block in message.content[1:]] == [{"city": "Paris"}, {"city": "Oslo"}]


def test_a_response_thinks(thinker: Hosted, scripted: Script) -> None:
    scripted(f"{THOUGHT}\n\nSunny.")
    response = thinker.openai().responses.create(model="thinker", input=QUESTION)
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output_text == "Sunny."
    assert response.usage.output_tokens_details.reasoning_tokens == tokens(thinker, THOUGHT)


@needs_trained_model
def test_a_trained_model_calls_as_its_tools_say(tmp_path: Path) -> None:
    tools = [function(WEATHER, strict=True), function(MESSAGE, strict=True)]
    schemas = {tool["name"]: tool["parameters"] for tool in (WEATHER, MESSAGE)}
    seen = 0
    with hosted(built(tmp_path / "trained", TRAINED)) as server:
        for seed in range(4):
            asked = {**ASKED, "temperature": 1.5, "seed": seed, "max_tokens": 200}
            choice = server.openai().chat.completions.create(**asked, tools=tools, tool_choice="required").choices[0]
            calls = choice.message.tool_calls
            for call in calls if choice.finish_reason == "tool_calls" else calls[:-1]:
                jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])
                seen += 1
    assert seen
