"""/v1/chat/completions, by the official client."""

import inspect
import json
import math
from typing import Any

import anthropic
import jsonschema
import openai
import pytest
from openai.resources.responses import Responses
from server.conftest import Script
from server.hosting import MESSAGE, QUESTION, WEATHER, Hosted, function

from moepack.runtime.server import chat, completions, messages, responses

TOOLS = [function(MESSAGE), function(WEATHER)]
ASKED: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}


def assembled(chunks: list[Any]) -> tuple[dict[str, Any], str, list[Any]]:
    """The message that a stream's deltas make, why it ended, and its logprobs."""
    message: dict[str, Any] = {"content": None}
    calls: dict[int, dict[str, Any]] = {}
    logprobs, finish = [], ""
    for chunk in chunks:
        for choice in chunk.choices:
            delta = choice.delta.model_dump(exclude_unset=True)
            for call in delta.pop("tool_calls", None) or []:
                known = calls.setdefault(call["index"], {"function": {"name": "", "arguments": ""}})
                known |= {key: call[key] for key in ("id", "type") if key in call}
                for key, text in call["function"].items():
                    known["function"][key] += text
            for key, text in delta.items():
                message[key] = (message.get(key) or "") + text
            logprobs += choice.logprobs.content if choice.logprobs else []
            finish = choice.finish_reason or finish
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return message, finish, logprobs


CASES: dict[str, dict[str, Any]] = {
    "plain": {"messages": [{"role": "user", "content": "Tell me about Python."}], "max_tokens": 40},
    "call": {"tools": TOOLS},
    "cut call": {"tools": TOOLS, "max_tokens": 24},
    "calls": {"tools": TOOLS, "tool_choice": "required", "max_tokens": 100, "temperature": 1.5, "seed": 5},
    "one call": {
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 1.5,
        "seed": 5,
    },
    "named": {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "send_message"}}},
    "none": {"tools": TOOLS, "tool_choice": "none", "max_tokens": 30},
    "sampled": {"temperature": 1.2, "top_p": 0.9, "seed": 7, "max_tokens": 50, "logprobs": True, "top_logprobs": 3},
    "own fields": {"temperature": 1, "seed": 1, "max_tokens": 9, "extra_body": {"top_k": 5, "min_p": 0.1}},
    "stop": {"messages": [{"role": "user", "content": "Hello"}], "stop": [" ", "e"], "max_tokens": 30},
    "json": {"response_format": {"type": "json_object"}, "max_tokens": 80},
}


@pytest.mark.parametrize("case", CASES)
def test_the_stream_makes_the_whole_answer(server: Hosted, case: str) -> None:
    client = server.openai()
    whole = client.chat.completions.create(**{**ASKED, **CASES[case]})
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**{**ASKED, **CASES[case], **options}))
    message, finish, logprobs = assembled(chunks)
    choice = whole.choices[0]
    assert message == choice.message.model_dump(exclude_unset=True)
    assert finish == choice.finish_reason
    assert logprobs == ((choice.logprobs.content if choice.logprobs else None) or [])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert "tools" not in CASES[case] or "<tool_call>" not in str(message)  # without tools it is text


def test_a_call_and_what_the_tool_said(server: Hosted) -> None:
    client = server.openai()
    first = client.chat.completions.create(**ASKED, tools=TOOLS)
    assert first.choices[0].finish_reason == "tool_calls"
    [call] = first.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)["city"]) == ("get_weather", "Paris")
    said = first.choices[0].message.model_dump(exclude_none=True)
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"forecast": "sunny"}'}
    more = {**ASKED, "messages": [*ASKED["messages"], said, result], "max_tokens": 40}
    second = client.chat.completions.create(**more, tools=TOOLS)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached >= first.usage.prompt_tokens
    assert second.usage.prompt_tokens > cached
    again = client.chat.completions.create(**more, tools=TOOLS, tool_choice="required")
    assert again.choices[0].message.tool_calls[0].id == "call_00000001"


GOOD_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize(
    "end", [', "day"}}\n</tool_call>', "}", "}} oops</tool_call>", '}, "arguments": {}}</tool_call>']
)
def test_a_call_that_was_cut_can_be_sent_back(server: Hosted, scripted: Script, end: str, told: bool) -> None:
    """Its arguments are no JSON, though more of them were said; no later call has its id."""
    client = server.openai()
    scripted(GOOD_CALL.partition("}")[0] + end)
    first = client.chat.completions.create(**ASKED, tools=TOOLS).choices[0]
    assert first.finish_reason == "stop"
    [call] = first.message.tool_calls
    assert call.function.arguments.startswith('{"city": "Paris"')
    with pytest.raises(json.JSONDecodeError):
        json.loads(call.function.arguments)
    error: Any = {"role": "tool", "tool_call_id": call.id, "content": "the arguments are no JSON"}
    more = error if told else {"role": "user", "content": "Again, please."}
    turns = [*ASKED["messages"], first.message.model_dump(exclude_none=True), more]
    scripted(GOOD_CALL)
    second = client.chat.completions.create(**{**ASKED, "messages": turns}, tools=TOOLS).choices[0]
    assert second.finish_reason == "tool_calls"
    assert second.message.tool_calls[0].id == "call_00000001"


@pytest.mark.parametrize("seed", range(3))
def test_strict_tools_are_called_as_their_schema_says(server: Hosted, seed: int) -> None:
    tools = [function(WEATHER, strict=True), function(MESSAGE, strict=True)]
    asked = {**ASKED, "temperature": 1.5, "seed": seed, "max_tokens": 300}
    answer = server.openai().chat.completions.create(**asked, tools=tools, tool_choice="required")
    schemas = {tool["name"]: tool["parameters"] for tool in (WEATHER, MESSAGE)}
    calls = answer.choices[0].message.tool_calls
    whole = calls if answer.choices[0].finish_reason == "tool_calls" else calls[:-1]
    assert whole
    for call in whole:
        jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_tools_that_are_allowed_are_called(server: Hosted, mode: str) -> None:
    """Those that are not stay in the prompt."""
    client, message = server.openai(), {"type": "function", "function": {"name": "send_message"}}
    choice: Any = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [message]}}
    free = client.chat.completions.create(**ASKED, tools=TOOLS)
    held = client.chat.completions.create(**ASKED, tools=TOOLS, tool_choice=choice)
    assert [call.function.name for call in free.choices[0].message.tool_calls] == ["get_weather"]
    names = {call.function.name for call in held.choices[0].message.tool_calls or ()}
    assert names == {"send_message"} if mode == "required" else names <= {"send_message"}
    assert held.usage.prompt_tokens == free.usage.prompt_tokens


@pytest.mark.parametrize(
    "allowed", [None, {}, {"tools": [1]}, {"mode": "none", "tools": []}, {"tools": [{"type": "function"}]}]
)
def test_allowed_tools_that_are_none_are_refused(server: Hosted, allowed: Any) -> None:
    choice: Any = {"type": "allowed_tools", "allowed_tools": allowed}
    with pytest.raises(openai.BadRequestError, match="allowed_tools has a mode"):
        server.openai().chat.completions.create(**ASKED, tools=TOOLS, tool_choice=choice)


def test_an_answer_keeps_to_a_schema(server: Hosted) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    asked = {**ASKED, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}
    answer = server.openai().chat.completions.create(**{**asked, "temperature": 1.5, "seed": 3})
    jsonschema.validate(json.loads(answer.choices[0].message.content), schema)


def test_several_calls_and_what_is_said_between_them(server: Hosted, scripted: Script) -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'
    scripted(f"Let me see.\n{call % 'Paris'}\n{call % 'Oslo'}")
    asked = {**ASKED, "tools": TOOLS}
    whole = server.openai().chat.completions.create(**asked).choices[0]
    message, finish, _ = assembled(list(server.openai().chat.completions.create(**asked, stream=True)))
    assert message == whole.message.model_dump(exclude_unset=True)
    assert finish == whole.finish_reason == "tool_calls"
    assert whole.message.content == "Let me see."
    assert [call.function.arguments for call in whole.message.tool_calls] == ['{"city": "Paris"}', '{"city": "Oslo"}']
    one = server.openai().chat.completions.create(**asked, parallel_tool_calls=False).choices[0]
    assert [call.function.arguments for call in one.message.tool_calls] == ['{"city": "Paris"}']
    assert one.finish_reason == "tool_calls"


def test_markup_that_is_no_call_is_not_shown(server: Hosted, scripted: Script) -> None:
    scripted('So: <tool_call>\n{"name": "get_weather", "arguments": oops}\n</tool_call>')
    choice = server.openai().chat.completions.create(**ASKED, tools=TOOLS).choices[0]
    assert choice.message.model_dump(exclude_unset=True) == {"role": "assistant", "content": "So:"}
    assert choice.finish_reason == "stop"


def test_logprobs_are_the_models(server: Hosted) -> None:
    asked = {**ASKED, "max_tokens": 12, "logprobs": True, "top_logprobs": 20}
    [choice] = server.openai().chat.completions.create(**asked).choices
    assert len(choice.logprobs.content) == 12
    for entry in choice.logprobs.content:
        logprobs = [top.logprob for top in entry.top_logprobs]
        assert entry.logprob == logprobs[0] == max(logprobs)
        assert 0 < sum(map(math.exp, logprobs)) <= 1 + 1e-9


def test_a_seed_repeats_an_answer(server: Hosted) -> None:
    asked = {**ASKED, "temperature": 1.5, "max_tokens": 40}
    texts = [
        server.openai().chat.completions.create(**asked, seed=seed).choices[0].message.content for seed in (1, 1, -2)
    ]
    assert texts[0] == texts[1] != texts[2]


REFUSED: dict[str, dict[str, Any]] = {
    "n": {"n": 9},
    "presence_penalty": {"presence_penalty": 2.1},
    "temperature": {"temperature": 2.5},
    "top_p": {"top_p": 1.5},
    "max_tokens": {"max_tokens": 0},
    "top_logprobs": {"top_logprobs": 2},
    "stop": {"stop": ""},
    "messages[0].content": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    "messages[0].role": {"messages": [{"role": "robot", "content": "x"}]},
    "tool_choice": {"tool_choice": "required"},
    "tools[0]": {"tools": [function({"name": "a b"})]},
    "response_format": {"response_format": {"type": "yaml"}},
    "frobnicate": {"extra_body": {"frobnicate": 1}},
}


@pytest.mark.parametrize("param", REFUSED)
def test_what_is_not_supported_is_named(server: Hosted, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.openai().chat.completions.create(**{**ASKED, **REFUSED[param]})
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


def test_a_tool_that_is_not_given_cannot_be_forced(server: Hosted) -> None:
    client, other = server.openai(), {"type": "function", "name": "other"}
    with pytest.raises(openai.BadRequestError, match="'other' is no name of the tools") as chat:
        client.chat.completions.create(**ASKED, tools=TOOLS, tool_choice={"type": "function", "function": other})
    with pytest.raises(openai.BadRequestError, match="'other' is no name of the tools") as response:
        client.responses.create(
            model="demo", input=QUESTION, tools=[{"type": "function", **WEATHER}], tool_choice=other
        )
    assert chat.value.param == response.value.param == "tool_choice"


def test_what_cannot_be_held_to_is_named(server: Hosted) -> None:
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    with pytest.raises(openai.BadRequestError, match="cannot be held to"):
        server.openai().chat.completions.create(
            **ASKED, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        )


def test_a_prompt_that_is_too_long_is_refused(server: Hosted) -> None:
    with pytest.raises(openai.BadRequestError, match="shorten the prompt"):
        server.openai().chat.completions.create(model="demo", messages=[{"role": "user", "content": "word " * 2000}])


def test_a_new_call_has_no_id_that_a_trimmed_history_has(server: Hosted, scripted: Script) -> None:
    """Its first call was left out by the client: the second's number is not the count of those that are left."""
    arguments = {"city": "Paris", "day": "tomorrow"}
    text = json.dumps({"name": "get_weather", "arguments": arguments})
    call = {"id": "call_00000001", "type": "function"}
    call["function"] = {"name": "get_weather", "arguments": json.dumps(arguments)}  # type: ignore[assignment]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "Rain."}
    messages = [*ASKED["messages"], {"role": "assistant", "content": None, "tool_calls": [call]}, result]
    scripted(f"<tool_call>\n{text}\n</tool_call>")
    answer = server.openai().chat.completions.create(model="demo", messages=messages, tools=TOOLS)
    assert [each.id for each in answer.choices[0].message.tool_calls] == ["call_00000002"]


def test_a_refusal_of_an_earlier_answer_is_read(server: Hosted) -> None:
    said = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    messages = [*ASKED["messages"], said, {"role": "user", "content": "Please."}]
    answer = server.openai().chat.completions.create(model="demo", messages=messages, max_tokens=1)
    assert answer.usage.completion_tokens == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_begun_is_refused_at_once(server: Hosted, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "endless", "schema": {"$ref": "#"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        server.openai().chat.completions.create(**ASKED, response_format=form, stream=stream)
    assert "\n" not in refused.value.body["message"]  # type: ignore[index]


def test_the_fields_of_the_client_are_known_or_said_to_be_refused() -> None:
    """All that a client's own method takes: a new version of it is told here."""
    ours = (chat.ChatRequest, completions.CompletionRequest, responses.ResponseRequest, messages.MessagesRequest)
    theirs = (
        openai.resources.chat.Completions.create,
        openai.resources.Completions.create,
        Responses.create,
        anthropic.resources.Messages.create,
    )
    transport = {"self", "extra_headers", "extra_query", "extra_body", "timeout", "betas"}
    missing = {}
    for struct, method in zip(ours, theirs, strict=True):
        missing[struct.__name__] = set(inspect.signature(method).parameters) - transport - set(struct.__struct_fields__)
    assert missing == {
        "ChatRequest": set(),
        "CompletionRequest": set(),
        "ResponseRequest": {"access_programs", "background_options", "image"},
        "MessagesRequest": set(),
    }
