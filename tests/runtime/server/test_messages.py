"""/v1/messages, by Anthropic's client."""

import time
from pathlib import Path
from typing import Any

import anthropic
import httpx2 as httpx
import pytest
from server.conftest import Script
from server.hosting import KEY, MESSAGE, QUESTION, WEATHER, Hosted, hosted

from moepack.runtime.server.settings import Limits

TOOLS = [
    {"name": tool["name"], "description": tool["description"], "input_schema": tool["parameters"]}
    for tool in (MESSAGE, WEATHER)
]
COLD: dict[str, Any] = {"extra_body": {"temperature": 0}}
ASKED: dict[str, Any] = {"model": "demo", "max_tokens": 60, "messages": [{"role": "user", "content": QUESTION}], **COLD}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"max_tokens": 20},
    "system": {"system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]},
    "call": {"tools": TOOLS},
    "cut call": {"tools": TOOLS, "max_tokens": 24},
    "any": {"tools": TOOLS, "tool_choice": {"type": "any"}},
    "named": {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "send_message"}},
    "none": {"tools": TOOLS, "tool_choice": {"type": "none"}},
    "stop": {"stop_sequences": ["e"]},
}


def both(server: Hosted, asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer as a whole, and as the client puts its stream together; but for its id."""
    client = server.anthropic()
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        assembled = stream.get_final_message()
    found = [message.model_dump(exclude={"id"}, exclude_none=True) for message in (whole, assembled)]
    for each in found:
        usage = each.pop("usage")
        each["tokens"] = (usage["input_tokens"] + usage["cache_read_input_tokens"], usage["output_tokens"])
        for block in each["content"]:
            block.pop("parsed_output", None)  # only streams have it
    return found[0], found[1]


@pytest.mark.parametrize("case", CASES)
def test_the_stream_makes_the_whole_message(server: Hosted, case: str) -> None:
    whole, assembled = both(server, {**ASKED, **CASES[case]})
    assert whole == assembled


def test_a_call_and_what_the_tool_said(server: Hosted) -> None:
    client = server.anthropic()
    first = client.messages.create(**ASKED, tools=TOOLS)
    assert first.stop_reason == "tool_use"
    [call] = first.content
    assert (call.name, call.input["city"]) == ("get_weather", "Paris")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
    turns = [*ASKED["messages"], {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    asked = {**ASKED, "messages": turns, "tools": TOOLS}
    second = client.messages.create(**asked)
    assert second.usage.cache_read_input_tokens >= first.usage.input_tokens + first.usage.cache_read_input_tokens
    counted = client.messages.count_tokens(model="demo", messages=turns, tools=TOOLS)
    assert counted.input_tokens == second.usage.input_tokens + second.usage.cache_read_input_tokens


def tokenized(server: Hosted, **asked: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/tokenize", json=asked, headers={"x-api-key": KEY}, timeout=60)


def test_what_does_not_fit_the_context_is_counted(server: Hosted) -> None:
    turns: Any = [{"role": "user", "content": "sun " * 2000}]
    counted = server.anthropic().messages.count_tokens(model="demo", messages=turns).input_tokens
    assert counted > 2000 > server.service.engine.context
    assert tokenized(server, messages=turns).json()["count"] == counted


def test_what_is_far_too_long_is_not_counted(server: Hosted) -> None:
    turns: Any = [{"role": "user", "content": "sun " * 200_000}]
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        server.anthropic().messages.count_tokens(model="demo", messages=turns)
    for asked in ({"messages": turns}, {"content": turns[0]["content"]}):
        assert tokenized(server, **asked).status_code == 400


def test_several_calls_and_what_is_said_between_them(server: Hosted, scripted: Script) -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'
    scripted(f"Let me see.\n{call % 'Paris'}\n{call % 'Oslo'}")
    whole, assembled = both(server, {**ASKED, "tools": TOOLS})
    assert whole == assembled
    assert [block["type"] for block in whole["content"]] == ["text", "tool_use", "tool_use"]
    assert whole["stop_reason"] == "tool_use"


CUT = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"'
END = "}}\n</tool_call>"


@pytest.mark.parametrize("said", [CUT, CUT + ', "day"' + END, CUT.replace("Paris", "\\ud800") + END])
def test_a_call_that_is_not_whole_is_never_told(server: Hosted, scripted: Script, said: str) -> None:
    """Clients run what there is of it."""
    scripted(f"Let me see.\n{said}")
    whole, assembled = both(server, {**ASKED, "tools": TOOLS})
    assert whole == assembled
    assert [block["type"] for block in whole["content"]] == ["text"]
    assert whole["stop_reason"] == "end_turn"


def test_a_long_call_is_no_silence(demo: Path, scripted: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(f"{CUT}, 'day': '{'tomorrow ' * 60}'{END}".replace("'", '"'))
    body = {**ASKED, "tools": TOOLS, "stream": True, "max_tokens": 300}
    body |= body.pop("extra_body")
    with hosted(demo, limits=Limits(ping_seconds=0.5)) as server:
        step = server.service.scheduler._batch.step
        monkeypatch.setattr(server.service.scheduler._batch, "step", lambda: (time.sleep(0.04), step()))
        asked = httpx.stream("POST", f"{server.url}/v1/messages", json=body, headers={"x-api-key": KEY}, timeout=60)
        with asked as answer:
            lines = [line for line in answer.iter_lines() if line]
    begins = lines.index("event: content_block_start")
    assert lines[:begins].count(": still at it") > 3
    assert "input_json_delta" in "".join(lines[begins:])


@pytest.mark.parametrize("kind", [["any"], {}, None, "some"])
def test_a_choice_that_is_none_is_refused(server: Hosted, kind: Any) -> None:
    with pytest.raises(anthropic.BadRequestError, match="its type is none of"):
        server.anthropic().messages.create(**ASKED, tools=TOOLS, tool_choice={"type": kind})


def test_an_answer_that_the_client_begins_is_refused(server: Hosted) -> None:
    turns = [*ASKED["messages"], {"role": "assistant", "content": "It is"}]
    with pytest.raises(anthropic.BadRequestError, match="must end with a user's message"):
        server.anthropic().messages.create(**{**ASKED, "messages": turns})
    assert server.anthropic().messages.count_tokens(model="demo", messages=turns).input_tokens


def test_a_stop_sequence_is_told(server: Hosted) -> None:
    answer = server.anthropic().messages.create(**ASKED, stop_sequences=["e"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "e")


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 0},
        {"extra_body": {"temperature": 1.5}},
        {"extra_body": {"frobnicate": 1}},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tool_choice": {"type": "any"}},
        {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "other"}},
        {"messages": []},
    ],
)
def test_errors_have_anthropics_shape(server: Hosted, more: dict[str, Any]) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        server.anthropic().messages.create(**{**ASKED, **more})
    body: Any = refused.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"


def test_a_wrong_key_has_anthropics_shape_too(server: Hosted) -> None:
    with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
        server.anthropic("wrong").messages.create(**ASKED)
