"""Conversations in OpenAI's shape, and what is refused to be one."""

from typing import Any

import pytest

from moepack.manifests.errors import UsageError
from moepack.runtime.answers.events import CallArguments, CallBegan, CallEnded, Content, Thinking
from moepack.runtime.answers.message import Assembly
from moepack.runtime.chat.conversation import Conversation, Entry, check_tools


def test_what_was_said_is_kept_without_a_call_that_was_cut() -> None:
    assembly = Assembly(3)
    assembly.add([Thinking("hm"), Content("So."), CallBegan(0, "f"), CallArguments(0, '{"a": 1e999}'), CallEnded(0)])
    assembly.add([CallBegan(1, "g"), CallArguments(1, '{"b')])
    entry = Entry.said(assembly.message())
    assert entry.tool_calls is not None
    assert [(call.id, call.function.name) for call in entry.tool_calls] == [("call_00000003", "f")]
    found = entry.rendered()
    assert (found["content"], found["reasoning_content"]) == ("So.", "hm")
    assert found["tool_calls"][0]["function"]["arguments"]["a"] > 1e308


def test_arguments_of_a_messages_file_may_be_objects() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": "Zürich"}}}
    entry = Entry.of({"role": "assistant", "content": "", "tool_calls": [call]})
    assert entry.tool_calls is not None
    assert entry.tool_calls[0].function.arguments == '{"city": "Zürich"}'
    assert entry.rendered()["tool_calls"][0]["function"]["arguments"] == {"city": "Zürich"}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "root", "content": "x"},
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "user", "content": "x", "more": 1},
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "tool_calls": [1]},
        {"role": "assistant", "tool_calls": 1},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
    ],
)
def test_other_messages_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="a message that chat cannot take"):
        Entry.of(message)


@pytest.mark.parametrize("tools", [[1], [{}], [{"function": {}}], [{"function": {"name": 1}}], [{"name": "f"}]])
def test_other_tools_are_refused(tools: list[Any]) -> None:
    with pytest.raises(UsageError, match=r"tools\.json: tool 0 is not"):
        check_tools(tools, "tools.json")


def test_a_system_message_is_set_replaced_and_survives_a_reset() -> None:
    conversation = Conversation()
    conversation.ask("Hello")
    conversation.system = "Be kind."
    conversation.system = "Be brief."
    assert [(entry.role, entry.content) for entry in conversation.entries] == [
        ("system", "Be brief."),
        ("user", "Hello"),
    ]
    conversation.reset()
    assert [entry.role for entry in conversation.entries] == ["system"]
    conversation.system = None
    assert conversation.entries == []


def test_thinking_before_a_call_is_the_answer_s_too() -> None:
    conversation = Conversation([Entry("system", "Be kind.")])
    assert conversation.thought == ""
    conversation.ask("Why?")
    conversation.entries.append(Entry("assistant", "So.", "old"))
    conversation.ask("And?")
    conversation.entries += [Entry("assistant", "", "one"), Entry("tool", "x"), Entry("assistant", "So.", "two")]
    assert conversation.thought == "one\ntwo"
    conversation.ask("Now?")
    conversation.entries.append(Entry("assistant", "So."))
    assert conversation.thought == ""
