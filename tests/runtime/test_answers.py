"""Answers read from text in pieces of any size, in both dialects, and rendered again by templates."""

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from front import TRAINED, needs_trained_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_template import QWEN_STYLE

from moepack.convert.shipped import CHECKPOINT
from moepack.runtime.answers.dialect import CLOSE, OPEN, Calls, Dialect, Thinking
from moepack.runtime.answers.events import CallArguments, CallBegan, CallEnded, Content, Event, Malformed
from moepack.runtime.answers.message import Assembly, Message
from moepack.runtime.answers.reader import AnswerReader
from moepack.runtime.template import ChatTemplate

DEMO = (CHECKPOINT / "chat_template.jinja").read_text()
PROPERTIES = {
    "text": {"type": "string"},
    "count": {"type": "integer"},
    "ratio": {"type": "number"},
    "flag": {"type": "boolean"},
    "list": {"type": "array"},
    "some": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "one": {"$ref": "#/$defs/one"},
    "any": {},
}
PARAMETERS = {"type": "object", "properties": PROPERTIES, "$defs": {"one": {"enum": ["a", "b"]}}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}, {"name": "g"}]
JSON_CALL = (
    '<tool_call>\n{"name": "f", "arguments": {"text": "a </tool_call> \\" {", "list": [1, {"a": null}]}}\n</tool_call>'
)
XML_CALL = (
    '<tool_call>\n<function=f>\n<parameter=text>\nsays "<b"\n\n</parameter>\n<parameter=count>\n3\n</parameter>\n'
    "</function>\n</tool_call>"
)


def read(pieces: Sequence[str], calls: Calls | None, thinking: Thinking = "never") -> list[Event]:
    reader = AnswerReader(calls, thinking, TOOLS)
    return [*(event for piece in pieces for event in reader.push(piece)), *reader.finish()]


def message(pieces: Sequence[str], calls: Calls | None, thinking: Thinking = "never") -> Message:
    assembly = Assembly()
    assembly.add(read(pieces, calls, thinking))
    return assembly.message()


def arguments(text: str, calls: Calls) -> Any:
    (call,) = message([text], calls).calls
    assert call.whole
    return json.loads(call.arguments)


def xml(key: str, value: str) -> str:
    return f"<tool_call>\n<function=f>\n<parameter={key}>\n{value}\n</parameter>\n</function>\n</tool_call>"


# Pieces of which an answer may be made, whole, broken and in any order.
SCRAPS = st.sampled_from(
    [
        *("<think>", "</think>", OPEN, CLOSE, "\n", " ", "hi", "<", "<tool", "_call>", "{", "}", '"', "\\", "é🙂"),
        *('{"name": "f", ', '"arguments": ', '{"a": 1}', "[", "]", ",", ": ", "1e5", "-", "tru", "e", "\\u00", "00"),
        *("<function=f>", "<function=", ">", "<parameter=text>", "<parameter=count>", "</parameter>", "</function>"),
        *(JSON_CALL, XML_CALL, "</", "\x00", "\ufffd"),
    ]
)
ANSWERS = st.lists(SCRAPS | st.text(max_size=5), max_size=12).map("".join)
DIALECTS = st.sampled_from(["json", "xml", None])
THINKING = st.sampled_from(["never", "may", "begun"])


def cut(text: str, data: st.DataObject) -> list[str]:
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@settings(deadline=None)
@given(ANSWERS, DIALECTS, THINKING, st.data())
def test_no_cut_makes_a_difference(text: str, calls: Calls | None, thinking: Thinking, data: st.DataObject) -> None:
    assert message(cut(text, data), calls, thinking) == message([text], calls, thinking)
    assert message(list(text), calls, thinking) == message([text], calls, thinking)


@settings(deadline=None)
@given(ANSWERS, st.sampled_from(["json", "xml"]), THINKING)
def test_whole_calls_have_whole_arguments_and_markup_is_no_content(text: str, calls: Calls, thinking: Thinking) -> None:
    said = message(list(text), calls, thinking)
    for call in said.calls:
        if call.whole:
            assert isinstance(json.loads(call.arguments), dict)
            assert call.name
    begins = "<function=" if calls == "xml" else "{"
    for rest in (said.content or "").split(OPEN)[1:]:
        assert not rest.lstrip(" \t\r\n").startswith(begins)


@settings(deadline=None)
@given(ANSWERS, DIALECTS, THINKING)
def test_calls_are_told_one_after_the_other(text: str, calls: Calls | None, thinking: Thinking) -> None:
    """Each begins, is given arguments, and ends or is malformed, before the next; counted from 0."""
    under_way, count = None, 0
    for event in read(list(text), calls, thinking):
        if isinstance(event, CallBegan):
            assert (under_way, event.index) == (None, count)
            under_way, count = event.index, count + 1
        elif isinstance(event, CallArguments):
            assert event.index == under_way
            assert event.text
        elif isinstance(event, CallEnded) or (isinstance(event, Malformed) and event.index is not None):
            assert event.index == under_way
            under_way = None
        else:
            assert under_way is None
    assert under_way is None


@given(st.text(), THINKING.filter(lambda thinking: thinking != "begun"))
def test_text_without_markup_stays_as_it_is(text: str, thinking: Thinking) -> None:
    if "<t" not in text:
        assert message(list(text), "json", thinking).content == (text or None)


@pytest.mark.parametrize("size", range(1, len(OPEN)))
def test_a_tag_cut_by_the_answers_end_is_not_shown_but_a_bracket_is(size: int) -> None:
    said = message(["so ", OPEN[:size]], "json")
    assert said.content == ("so " + OPEN[:size] if size < len("<tool") else "so")
    assert [each.text for each in said.malformed] == ([] if size < len("<tool") else [OPEN[:size]])


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (f'hello"}}}}\n{CLOSE}', 'hello"}}'),
        (f"{CLOSE}hello", "hello"),
        (f"one\n{CLOSE}\ntwo", "one\n\ntwo"),
        (f"{JSON_CALL}\n{CLOSE}", None),
        (f"{JSON_CALL}{CLOSE}{CLOSE} so", "so"),
        (f"a call ends in {CLOSE}, always", f"a call ends in {CLOSE}, always"),
        (f"{OPEN} and {CLOSE}", f"{OPEN} and {CLOSE}"),
        ("XML: <tool>x</tool", "XML: <tool>x</tool"),
        ("XML: <tool>x</tool>", "XML: <tool>x</tool>"),
        ("so\n</tool", "so"),
        (f"{JSON_CALL}\n</tool", None),
    ],
)
def test_a_closing_tag_of_no_call_is_not_shown_but_one_that_is_written_about_is(text: str, content: str | None) -> None:
    assert message([text], "json").content == content


@pytest.mark.parametrize(
    ("escapes", "whole"),
    [
        ("\\ud83d\\ude00", True),
        ("\\ud83d", False),
        ("\\ud83d.", False),
        ("\\ud83d\\n", False),
        ("\\ud83d\\ud83d\\ude00", False),
        ("\\ude00", False),
        ("\\u00e9", True),
    ],
)
def test_arguments_with_half_a_character_are_malformed(escapes: str, whole: bool) -> None:
    said = message([f'<tool_call>\n{{"name": "f", "arguments": {{"text": "{escapes}"}}}}\n</tool_call>'], "json")
    assert ([call.whole for call in said.calls], [each.why for each in said.malformed]) == (
        ([True], []) if whole else ([False], ["its JSON has an escape of half a character"])
    )


@pytest.mark.parametrize("value", ['{"a": "\\ud800"}', '["\\udfff"]', '{"\\ud800": 1}', '"\\ud800"'])
@pytest.mark.parametrize("key", ["any", "list"])
def test_an_xml_call_s_value_with_half_a_character_is_a_bare_text(key: str, value: str) -> None:
    assert arguments(xml(key, value), "xml") == {key: value}


@pytest.mark.parametrize("call", [JSON_CALL, XML_CALL])
@pytest.mark.parametrize("dropped", range(1, len(CLOSE) + 1))
def test_what_there_is_of_a_call_that_is_not_whole_is_no_json(call: str, dropped: int) -> None:
    [cut] = message([call[:-dropped]], "xml" if call == XML_CALL else "json").calls
    assert not cut.whole
    with pytest.raises(json.JSONDecodeError):
        json.loads(cut.arguments)


def test_without_tools_markup_is_a_text_like_any_other() -> None:
    assert message(list(JSON_CALL), None) == Message(JSON_CALL, None, (), ())


@pytest.mark.parametrize(("calls", "call"), [("json", JSON_CALL), ("xml", XML_CALL)])
def test_thinking_content_and_several_calls(calls: Calls, call: str) -> None:
    text = f"hm <tool_call>\n\n so\n</think>\n\nI look.\n\n{call}\n{call}\n and then "
    said = message(list(text), calls, "begun")
    assert (said.reasoning, said.content) == ("hm <tool_call>\n\n so", "I look.\n\n\n\n and then ")
    assert [(each.id, each.name, each.whole) for each in said.calls] == [
        ("call_00000000", "f", True),
        ("call_00000001", "f", True),
    ]
    assert not said.malformed
    assert message(list("<think>" + text), calls, "may") == said
    assert message([call], calls).content is None


def test_arguments_come_as_they_are_written() -> None:
    for calls, text in (("json", JSON_CALL), ("xml", XML_CALL)):
        reader = AnswerReader(calls, "never", TOOLS)  # type: ignore[arg-type]
        deltas = [event.text for piece in text for event in reader.push(piece) if isinstance(event, CallArguments)]
        assert len(deltas) > 10
        assert json.loads("".join(deltas))["text"] == ('a </tool_call> " {' if calls == "json" else 'says "<b"\n')


def test_content_waits_only_for_what_may_be_markup() -> None:
    reader = AnswerReader("json", "never")
    pushed = [reader.push(piece) for piece in ("a", " ", "b<", "t", "o <tool_call", ">", "x")]
    texts = [[event.text for event in events if isinstance(event, Content)] for events in pushed]
    assert texts == [["a"], [], [" b"], [], ["<to"], [], [" <tool_call>x"]]


@pytest.mark.parametrize(
    ("text", "calls", "index", "why"),
    [
        ("<tool_call>\n", "json", None, "ended inside"),
        ('<tool_call>\n{"name": "f", "arguments": {"a"', "json", 0, "ended inside"),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n', "json", 0, "ended inside"),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}\n</tool_call>', "json", 0, "'<' where"),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 01}}\n</tool_call>', "json", 0, "'01', which is no value"),
        ('<tool_call>\n{"name": "f", "arguments": {"a": "\n"}}\n</tool_call>', "json", 0, "control character"),
        ('<tool_call>\n{"name": "f", "arguments": {"a": "\\x"}}\n</tool_call>', "json", 0, r"escape \\x"),
        ('<tool_call>\n{"name": "f", "arguments": {"a": NaN}}\n</tool_call>', "json", 0, "'N' where"),
        ('<tool_call>\n{"name": "f", "arguments": ' + '{"a": ' * 70, "json", 0, "nested deeper"),
        ('<tool_call>\n{"name": "f", "arguments": "{}"}\n</tool_call>', "json", None, "no object"),
        ('<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>', "json", None, "no text"),
        ('<tool_call>\n{"name": "f"}\n</tool_call>', "json", None, "no arguments"),
        ('<tool_call>\n{"arguments": {}}\n</tool_call>', "json", None, "no name"),
        ('<tool_call>\n{"name": "f", "arguments": {}, "name": "g"}\n</tool_call>', "json", 0, "twice"),
        ('<tool_call>\n{"name": "f", "arguments": {}}}\n</tool_call>', "json", 0, "follows"),
        ("<tool_call>\n<function=f>\n<parameter=a>\n1", "xml", 0, "ended inside"),
        ("<tool_call>\n<function=>\n</tool_call>", "xml", None, "no name"),
        ("<tool_call>\n<function=f>\nx</tool_call>", "xml", 0, "something else"),
        (
            "<tool_call>\n<function=f>\n" + "<parameter=a>\n1\n</parameter>\n" * 2 + "</tool_call>",
            "xml",
            0,
            "twice",
        ),
    ],
)
def test_a_call_that_is_none_is_told_with_its_text(text: str, calls: Calls, index: int | None, why: str) -> None:
    after = "" if "inside" in why or "deeper" in why else " then"
    said = message(["so ", text, after], calls)
    assert said.content == ("so  then" if after else "so")
    (malformed,) = said.malformed
    assert (malformed.index, malformed.text) == (index, text)
    assert [call.whole for call in said.calls] == ([] if index is None else [False])
    assert re.search(why, malformed.why)


def test_keys_of_a_json_call_may_stand_in_any_order_and_others_beside_them() -> None:
    text = '<tool_call>{"id": [1], "arguments": {"a": 1}, "name": "f", "x": null}</tool_call>'
    assert arguments(text, "json") == {"a": 1}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("text", "3", "3"),
        ("text", "", ""),
        ("text", "\na\n", "\na\n"),
        ("count", "3", 3),
        ("count", "three", "three"),
        ("ratio", " 1.50 ", 1.5),
        ("flag", "true", True),
        ("flag", "False", False),
        ("list", '[1, "a"]', [1, "a"]),
        ("list", "[1,", "[1,"),
        ("list", '["</parameter>\\n"]', ["</parameter>\n"]),
        ("some", "null", None),
        ("some", "None", None),
        ("some", "12", "12"),
        ("one", "a", "a"),
        ("any", '{"a": 1}', {"a": 1}),
        ("any", "words", "words"),
        ("unheard", "1", "1"),
    ],
)
def test_values_are_typed_by_the_tools_schema(key: str, value: str, expected: Any) -> None:
    found = arguments(xml(key, value), "xml")
    assert found == {key: expected}
    assert type(found[key]) is type(expected)


def test_ids_count_on_from_where_the_caller_is() -> None:
    assembly = Assembly(first=7)
    assembly.add(read([JSON_CALL], "json"))
    assert [call.id for call in assembly.message().calls] == ["call_00000007"]


def test_dialects_are_told_by_the_template() -> None:
    assert Dialect.of(DEMO) == Dialect("json", thinks=False)
    assert Dialect.of(QWEN_STYLE) == Dialect("xml", thinks=True)
    assert Dialect.of("{{ messages }}") == Dialect(None, thinks=False)


@pytest.mark.parametrize(("variables", "thinking"), [({}, "begun"), ({"enable_thinking": False}, "never")])
def test_a_prompt_says_whether_it_opens_the_thinking(variables: dict[str, Any], thinking: Thinking) -> None:
    template = ChatTemplate({"default": QWEN_STYLE}, {}, "t")
    prompt = template.render([{"role": "user", "content": "hi"}], variables=variables)
    assert Dialect.of(QWEN_STYLE).thinking(prompt) == thinking
    assert Dialect.of("<think>").thinking("<|im_start|>assistant\n") == "may"
    assert Dialect.of(DEMO).thinking("<|im_start|>assistant\n") == "never"


WORDS = st.text(st.sampled_from('ab \n"\\{}<>é🙂/_'), max_size=12)
VALUES = {
    "text": WORDS,
    "count": st.integers(),
    "ratio": st.floats(allow_nan=False, allow_infinity=False),
    "flag": st.booleans(),
    "list": st.recursive(st.none() | st.booleans() | st.integers() | WORDS, st.lists, max_leaves=6).map(lambda x: [x]),
    "one": st.sampled_from("ab"),
}
CALLS = st.lists(st.fixed_dictionaries({}, optional=VALUES), max_size=3)
TEXTS = WORDS.map(str.strip)


def round_trip(source: str, turn: dict[str, Any]) -> None:
    """Rendered, cut off where the answer begins, read, and rendered again."""
    template = ChatTemplate({"default": source}, {}, "t")
    asked = [{"role": "user", "content": "hi"}]
    whole = template.render([*asked, turn], tools=TOOLS, add_generation_prompt=False)
    prompt = template.render(asked, tools=TOOLS)
    answer = whole.removeprefix(prompt)
    assert answer != whole
    dialect = Dialect.of(source)
    said = message([answer.rpartition("<|im_end|>")[0]], dialect.calls, dialect.thinking(prompt))
    assert not said.malformed
    assert [json.loads(call.arguments) for call in said.calls] == [
        call["function"]["arguments"] for call in turn["tool_calls"]
    ]
    assert template.render([*asked, said.turn()], tools=TOOLS, add_generation_prompt=False) == whole


def turn(content: str, reasoning: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    functions = [{"type": "function", "function": {"name": "f", "arguments": each}} for each in calls]
    return {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": functions}


@settings(deadline=None)
@given(TEXTS, TEXTS, CALLS)
def test_what_an_xml_template_renders_is_read_and_rendered_again(content: str, thought: str, calls: Any) -> None:
    round_trip(QWEN_STYLE, turn(content, thought, calls))


@settings(deadline=None)
@given(TEXTS, CALLS)
def test_what_the_demo_models_template_renders_is_read_and_rendered_again(content: str, calls: Any) -> None:
    round_trip(DEMO, turn(content, "", calls))


@needs_trained_model
@settings(deadline=None)
@given(CALLS.filter(bool))
def test_what_the_trained_models_template_renders_is_read_and_rendered_again(calls: Any) -> None:
    round_trip((TRAINED / "chat_template.jinja").read_text(), turn("", "", calls))
