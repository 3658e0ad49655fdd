"""/v1/responses, by the official client."""

import json
from typing import Any

import jsonschema
import openai
import pytest
from server.conftest import Script
from server.hosting import MESSAGE, QUESTION, WEATHER, Hosted

TOOLS = [{"type": "function", **tool} for tool in (MESSAGE, WEATHER)]
ASKED: dict[str, Any] = {"model": "demo", "input": QUESTION, "temperature": 0, "max_output_tokens": 60}
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"instructions": "Be brief."},
    "cut": {"max_output_tokens": 5},
    "call": {"tools": TOOLS},
    "cut call": {"tools": TOOLS, "max_output_tokens": 20},
    "named": {"tools": TOOLS, "tool_choice": {"type": "function", "name": "send_message"}},
    "allowed": {
        "tools": TOOLS,
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "send_message"}, {"type": "image_generation"}],
        },
    },
    "schema": {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}},
    "logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
}


def output(response: Any) -> list[Any]:
    """What was said, without the items' ids."""
    return [item.model_dump(exclude={"id"}) for item in response.output]


def streamed(events: list[Any]) -> list[str]:
    """The text of every item, put together from its deltas."""
    texts: dict[int, str] = {}
    for event in events:
        if event.type == "response.output_item.added":
            texts[event.output_index] = ""
        if event.type.endswith(".delta"):
            texts[event.output_index] += event.delta
    return [texts[index] for index in sorted(texts)]


def text_of(item: Any) -> str:
    return item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]


@pytest.mark.parametrize("case", CASES)
def test_the_stream_makes_the_whole_response(server: Hosted, case: str) -> None:
    client = server.openai()
    whole = client.responses.create(**{**ASKED, **CASES[case]})
    events = list(client.responses.create(**{**ASKED, **CASES[case]}, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    last = events[-1].response
    assert (last.status, output(last)) == (whole.status, output(whole))
    assert streamed(events) == [text_of(item) for item in output(whole)]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.model_dump() for item in done] == [item.model_dump() for item in last.output]
    assert whole.usage.output_tokens == last.usage.output_tokens
    assert (whole.status == "incomplete") == (whole.incomplete_details is not None)
    assert [item.status for item in whole.output] == ["completed"] * (len(whole.output) - 1) + [whole.status]


def test_a_call_that_was_cut_can_be_sent_back(server: Hosted, scripted: Script) -> None:
    scripted('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Pa", "day"}}\n</tool_call>')
    client = server.openai()
    [call] = client.responses.create(**ASKED, tools=TOOLS).output
    assert (call.status, call.arguments) == ("incomplete", '{"city": "Pa", "day')
    scripted("It will be sunny.")
    error = {"type": "function_call_output", "call_id": call.call_id, "output": "the arguments are no JSON"}
    turns = [{"role": "user", "content": QUESTION}, call.model_dump(), error]
    assert client.responses.create(**{**ASKED, "input": turns}, tools=TOOLS).output_text == "It will be sunny."
    scripted('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>')
    turns[-1] = {"role": "user", "content": "Again, please."}
    [again] = client.responses.create(**{**ASKED, "input": turns}, tools=TOOLS).output
    assert again.call_id == "call_00000001"


def test_only_tools_that_are_allowed_are_called(server: Hosted) -> None:
    answer = server.openai().responses.create(**ASKED, **CASES["allowed"])
    assert {item.name for item in answer.output} == {"send_message"}


def test_a_schema_is_kept_to(server: Hosted) -> None:
    answer = server.openai().responses.create(
        **{**ASKED, **CASES["schema"], "temperature": 1.5, "max_output_tokens": 400}
    )
    jsonschema.validate(json.loads(answer.output_text), SCHEMA)


def test_logprobs_are_with_the_text(server: Hosted) -> None:
    answer = server.openai().responses.create(**{**ASKED, **CASES["logprobs"]})
    [part] = answer.output[0].content
    assert "".join(entry.token for entry in part.logprobs) == part.text
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)


def test_logprobs_of_a_text_after_a_call_are_its_own(server: Hosted, scripted: Script) -> None:
    call = json.dumps({"name": "get_weather", "arguments": {"city": "Paris", "day": "tomorrow"}})
    scripted(f"First.\n<tool_call>\n{call}\n</tool_call>\nThen.")
    asked = {**ASKED, **CASES["logprobs"], "tools": TOOLS, "max_output_tokens": 90}
    answer = server.openai().responses.create(**asked)
    texts = [item.content[0] for item in answer.output if item.type == "message"]
    assert [item.type for item in answer.output] == ["message", "function_call", "message"]
    for part in texts:
        tokens = "".join(entry.token for entry in part.logprobs)
        assert part.text.strip() in tokens
        assert "get_weather" not in tokens
    deltas = [
        e for e in server.openai().responses.create(**asked, stream=True) if e.type == "response.output_text.delta"
    ]
    assert "get_weather" not in "".join(entry.token for delta in deltas for entry in delta.logprobs)


def test_a_call_and_what_the_tool_said(server: Hosted, scripted: Script) -> None:
    client = server.openai()
    first = client.responses.create(**ASKED, tools=TOOLS)
    [call] = first.output
    assert (call.type, call.name, json.loads(call.arguments)["city"]) == ("function_call", "get_weather", "Paris")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    turns = [{"role": "user", "content": QUESTION}, call.model_dump(), result]
    scripted("It will be sunny.")
    second = client.responses.create(**{**ASKED, "input": turns}, tools=TOOLS)
    assert second.output_text == "It will be sunny."
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens
    turns += [item.model_dump() for item in second.output]
    third = client.responses.create(**{**ASKED, "input": [*turns, {"role": "user", "content": "Thanks"}]}, tools=TOOLS)
    assert third.usage.input_tokens_details.cached_tokens >= second.usage.input_tokens


@pytest.mark.parametrize(
    ("param", "more"),
    [
        ("previous_response_id", {"previous_response_id": "resp_1"}),
        ("background", {"background": True}),
        ("truncation", {"truncation": "auto"}),
        ("tools[0]", {"tools": [{"type": "web_search"}]}),
        ("input[0]", {"input": [{"type": "computer_call"}]}),
        ("nonsense", {"extra_body": {"nonsense": 1}}),
    ],
)
def test_what_is_not_supported_is_named(server: Hosted, param: str, more: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.openai().responses.create(**{**ASKED, **more})
    assert refused.value.param == param
