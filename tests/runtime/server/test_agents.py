"""What editors' agents send by default, shortened from requests of theirs, by the official clients."""

import json
from typing import Any

import anthropic
import openai
import pytest
from server.conftest import Script
from server.hosting import QUESTION, WEATHER, Hosted

IMAGE = "iVBORw0KGgo="
HOSTED = {"type": "web_search", "external_web_access": False}
SPACE = {
    "type": "namespace",
    "name": "mcp__sky",
    "description": "Tools about the sky.",
    "tools": [{"type": "function", **WEATHER, "strict": False}, {"type": "custom", "name": "freeform"}],
}
CODEX: dict[str, Any] = {  # codex 0.171.0
    "model": "demo",
    "input": [
        {
            "type": "message",
            "id": "msg_1",
            "role": "developer",
            "content": [{"type": "input_text", "text": "Be brief."}],
        },
        {"type": "message", "id": "msg_2", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
    ],
    "tools": [{"type": "function", "name": "view_image", "strict": False, "parameters": {}}, SPACE, HOSTED],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "01a2",
    "extra_body": {"client_metadata": {"thread_id": "01a2", "turn_id": "01a3"}, "temperature": 0},
}
CLAUDE: dict[str, Any] = {  # claude-code 2.1.332
    "model": "demo",
    "max_tokens": 60,
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": QUESTION, "cache_control": {"type": "ephemeral"}}]},
        {"role": "system", "content": "# Environment\nThe platform is linux."},
    ],
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_entrypoint=sdk-cli;"},
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
    ],
    "metadata": {"user_id": "{}"},
    "extra_query": {"beta": "true"},
    "extra_headers": {"anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14"},
    "extra_body": {
        "tools": [
            {"name": WEATHER["name"], "description": "", "input_schema": WEATHER["parameters"], "defer_loading": True},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        ],
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "temperature": 0,
    },
}
CALL = '<tool_call>\n{"name": "%s", "arguments": {"city": "Paris"}}\n</tool_call>'


def test_codexs_request_is_taken_and_a_namespaces_function_called(server: Hosted, scripted: Script) -> None:
    client = server.openai()
    scripted(CALL % "mcp__sky__get_weather")
    events = list(client.responses.create(**CODEX, stream=True))
    [call] = events[-1].response.output
    assert (call.namespace, call.name, json.loads(call.arguments)) == ("mcp__sky", "get_weather", {"city": "Paris"})
    [done] = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert done.name == "get_weather"
    turns = [
        *CODEX["input"],
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "x"},
    ]
    scripted("Sunny.")
    after = client.responses.create(**{**CODEX, "input": turns})
    assert after.output_text == "Sunny."
    answered = events[-1].response.usage
    assert after.usage.input_tokens_details.cached_tokens >= answered.input_tokens + answered.output_tokens


def test_the_response_tells_which_tools_are_left(server: Hosted, scripted: Script) -> None:
    scripted("Well.")
    tools = server.openai().responses.create(**CODEX).tools
    assert [tool.type for tool in tools] == ["function", "namespace"]
    assert [tool.parameters for tool in tools[1].tools] == [WEATHER["parameters"]]


@pytest.mark.parametrize("inside", [[], [{"type": "custom", "name": "freeform"}]])
def test_a_namespace_without_a_function_is_no_tool(server: Hosted, inside: list[Any]) -> None:
    alone = {**CODEX, "tools": [{**SPACE, "tools": inside}]}
    with pytest.raises(openai.BadRequestError, match="only functions that the client runs"):
        server.openai().responses.create(**alone)


def test_a_namespaces_function_can_be_required(server: Hosted) -> None:
    chosen = {"type": "function", "namespace": "mcp__sky", "name": "get_weather"}
    [call] = server.openai().responses.create(**{**CODEX, "tool_choice": chosen}).output
    assert (call.namespace, call.name) == ("mcp__sky", "get_weather")


def test_claude_codes_request_is_taken(server: Hosted) -> None:
    with server.anthropic().messages.stream(**CLAUDE) as stream:
        message = stream.get_final_message()
    assert [(block.type, block.name) for block in message.content if block.type == "tool_use"] == [
        ("tool_use", "get_weather")
    ]


def test_a_check_of_calls_that_there_is_none_of_is_refused(server: Hosted) -> None:
    body = {**CLAUDE["extra_body"], "safeguards": [{"type": "dangerous_tool_use"}]}
    with pytest.raises(anthropic.BadRequestError, match="safeguards"):
        server.anthropic().messages.create(**{**CLAUDE, "extra_body": body})


def test_chats_leave_out_tools_that_are_no_functions(server: Hosted) -> None:
    tools: Any = [{"type": "custom", "custom": {"name": "freeform"}}, {"type": "function", "function": WEATHER}]
    asked: Any = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    both = server.openai().chat.completions.create(**asked, tools=tools)
    assert both.choices[0].message.tool_calls[0].function.name == "get_weather"
    assert (
        both.usage.prompt_tokens
        == server.openai().chat.completions.create(**asked, tools=tools[1:]).usage.prompt_tokens
    )
    with pytest.raises(openai.BadRequestError, match="custom"):
        server.openai().chat.completions.create(**asked, tools=tools[:1])


def test_an_image_that_a_tool_gave_is_named_only(server: Hosted, scripted: Script) -> None:
    scripted("A dot.")
    call = {"type": "function_call", "call_id": "call_0", "name": "view_image", "arguments": "{}"}
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{IMAGE}"}
    turns = [*CODEX["input"], call, {"type": "function_call_output", "call_id": "call_0", "output": [image]}]
    assert server.openai().responses.create(**{**CODEX, "input": turns}).output_text == "A dot."
    scripted("A dot.")
    source = {"type": "base64", "media_type": "image/png", "data": IMAGE}
    result = {"type": "tool_result", "tool_use_id": "call_0", "content": [{"type": "image", "source": source}]}
    messages = [
        *CLAUDE["messages"],
        {"role": "assistant", "content": [{"type": "tool_use", "id": "call_0", "name": "get_weather", "input": {}}]},
        {"role": "user", "content": [result]},
    ]
    assert server.anthropic().messages.create(**{**CLAUDE, "messages": messages}).content[0].text == "A dot."


def test_a_tool_that_was_searched_for_is_named(server: Hosted) -> None:
    call = {"type": "tool_use", "id": "call_0", "name": "get_weather", "input": {}}

    def tokens(found: Any) -> int:
        result: Any = {"type": "tool_result", "tool_use_id": "call_0", "content": found}
        turns: Any = [
            *CLAUDE["messages"],
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ]
        return server.anthropic().messages.count_tokens(model="demo", messages=turns).input_tokens

    assert tokens([{"type": "tool_reference", "tool_name": "CronList"}]) == tokens("CronList")


def test_a_prompt_that_is_too_long_is_told_as_agents_know_it(server: Hosted) -> None:
    for words in (2000, 200000):  # counted, and refused before it is
        long = [{"role": "user", "content": "sun " * words}]
        with pytest.raises(openai.BadRequestError, match="prompt is too long") as refused:
            server.openai().chat.completions.create(model="demo", messages=long)  # type: ignore[arg-type]
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            server.anthropic().messages.create(model="demo", messages=long, max_tokens=9)  # type: ignore[arg-type]
