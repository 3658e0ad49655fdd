"""From what a person gives to tokens: chats, files, and what counts as empty; and sizes."""

import json
from decimal import Decimal
from typing import Any

import pytest
from front import byte_level
from hypothesis import given
from hypothesis import strategies as st

from moepack.manifests.errors import UsageError
from moepack.runtime.prompt import Chat, chat_tokens, parse_tools, parse_variables, raw_tokens
from moepack.runtime.quantities import UNITS, megabytes, parse_size
from moepack.runtime.template import ChatTemplate
from moepack.runtime.tokenizer import Tokenizer

TOKENIZER = Tokenizer(byte_level(), 257, (), {})
QUESTION = {"role": "user", "content": "hi"}


def test_a_question_with_a_system_message_becomes_the_templates_tokens() -> None:
    source = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}{{ tools }}{{ extra }}"
    template = ChatTemplate({"default": source}, {"eos_token": "<|end|>"}, "t")
    chat = Chat([*Chat.of("hi", "be brief").messages], [{"name": "f"}], {"extra": 1})
    tokens = chat_tokens(chat, template, TOKENIZER)
    assert TOKENIZER.decode(tokens, special=True) == "system:be brief<|end|>user:hi<|end|>[{'name': 'f'}]1"
    assert tokens.count(256) == 2


def test_messages_and_tools_files() -> None:
    chat = Chat.parse(json.dumps({"messages": [QUESTION], "tools": [{"name": "f"}]}).encode(), "f.json")
    assert (list(chat.messages), list(chat.tools or ())) == ([QUESTION], [{"name": "f"}])
    assert Chat.parse(json.dumps({"messages": [QUESTION]}).encode(), "f.json").tools is None
    assert parse_tools(b'[{"name": "f"}]', "t.json") == [{"name": "f"}]
    assert parse_variables('{"enable_thinking": false}') == {"enable_thinking": False}


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"messages": {}},
        {"messages": []},
        {"messages": ["hi"]},
        {"messages": [{"content": "x"}]},
        {"messages": [{"role": 1}]},
        {"messages": [QUESTION], "tools": {}},
        {"messages": [QUESTION], "tools": ["f"]},
        {"messages": [QUESTION], "model": "x"},
    ],
)
def test_a_messages_file_of_another_shape_is_one_sentence(value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        Chat.parse(json.dumps(value).encode(), "f.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"messages": 1, "messages": 2}'])
def test_files_that_are_no_json_are_usage_errors(content: bytes) -> None:
    for parse in (Chat.parse, parse_tools):
        with pytest.raises(UsageError, match=r"f\.json"):
            parse(content, "f.json")


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "\udcff"])
def test_variables_that_are_no_object_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError, match="--template-vars"):
        parse_variables(text)


def test_tools_that_are_no_list_are_usage_errors() -> None:
    for content in (b"{}", b"null"):
        with pytest.raises(UsageError, match=r"t\.json"):
            parse_tools(content, "t.json")


@pytest.mark.parametrize("content", ["", "  \n", None, []])
def test_an_empty_question_is_an_empty_prompt(content: Any) -> None:
    with pytest.raises(UsageError, match="prompt is empty"):
        Chat([{"role": "system", "content": "s"}, {"role": "user", "content": content}])


def test_an_empty_raw_prompt_is_refused_and_a_blank_one_is_text() -> None:
    with pytest.raises(UsageError, match="prompt is empty"):
        raw_tokens("", TOKENIZER)
    assert len(raw_tokens(" \n", TOKENIZER)) == 2


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("7.5GiB", 15 * 2**29),
        ("900 MB", 9 * 10**8),
        ("512MiB", 2**29),
        (" 1gb ", 10**9),
        ("123 B", 123),
        ("0.6B", 1),
        ("2.3GB", 2_300_000_000),
        ("8.123456789 GB", 8_123_456_789),
        ("8123456789 bytes", 8_123_456_789),
        ("121000000000", 121_000_000_000),
        (" 1000 ", 1000),
        ("999999999999999TB", (10**15 - 1) * 10**12),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "8",
        "999",
        "0008",
        "12000.5",
        "",
        "GB",
        "-1GB",
        "0GB",
        "8G",
        "8 GBs",
        "1e3MB",
        "8,5GB",
        "0.4B",
        "8 byte",
        "9" * 40 + "GB",
    ],
)
def test_sizes_that_are_none_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a size; .* such as 8GB, or bytes alone, .* such as 8000000000$"):
        parse_size(text)


@given(st.integers(1, 10**15), st.sampled_from(["KB", "MB", "GB", "TB"]))
def test_every_amount_of_bytes_can_be_written_in_every_unit(size: int, unit: str) -> None:
    assert parse_size(f"{Decimal(size) / UNITS[unit]:f}{unit}") == size
    assert size < 1000 or parse_size(str(size)) == size


def test_sizes_in_sentences() -> None:
    assert [megabytes(size) for size in (0, 4, 1_230_000, 5 * 10**9)] == ["0.0 MB", "4 bytes", "1.2 MB", "5.00 GB"]
