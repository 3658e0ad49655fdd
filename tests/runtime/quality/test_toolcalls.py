"""Tool calls: what counts as a call, as allowed, as right; rates and their differences."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moepack.manifests.errors import UsageError
from moepack.runtime.prompt import Chat
from moepack.runtime.quality.bootstrap import Rate, paired_difference
from moepack.runtime.quality.toolcalls import Call, Case, check_schemas, judge, parsed, read_cases, same_json

pytest.importorskip("jsonschema")  # of the extra "quality", which every target of the Makefile with tests installs

WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"type": "string", "enum": ["C", "F"]},
        },
        "required": ["city"],
    },
}
TIMER = {"name": "set_timer", "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}}}
TOOLS = [{"type": "function", "function": WEATHER}, TIMER]
CHAT = Chat([{"role": "user", "content": "Weather in Oslo?"}], TOOLS)
CASE = Case(CHAT, Call("get_weather", {"city": "Oslo", "days": 3}))
ALL = {"parse": True, "schema": True, "tool": True, "arguments": True}


def answer(name: str = "get_weather", **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        (answer(city="Oslo", days=3), "parse schema tool arguments"),
        ("Sure. " + answer(days=3.0, city="Oslo") + " Done.", "parse schema tool arguments"),
        (answer(city="Oslo", days=4), "parse schema tool"),
        (answer(city="Oslo"), "parse schema tool"),
        (answer(city="Oslo", days="3"), "parse tool"),
        (answer(city="Oslo", days=True), "parse tool"),
        (answer(city="Oslo", unit="K"), "parse tool"),
        (answer(days=3), "parse tool"),
        (answer("set_timer", minutes=3), "parse schema"),
        (answer("set_alarm", minutes=3), "parse"),
        (answer(city="Oslo", days=3) * 2, "parse schema"),
        (answer(city="Oslo", days=3) + "<tool_call>oops</tool_call>", ""),
        (answer(city="Oslo", days=3) + "<tool_call>", ""),
        (answer(city="Oslo", days=3).removesuffix("</tool_call>"), ""),
        ("<tool_call>{\\name\\: \\get_weather\\}</tool_call>", ""),
        ('<tool_call>{"name": "get_weather"}</tool_call>', ""),
        ('<tool_call>{"name": "get_weather", "arguments": "Oslo"}</tool_call>', ""),
        ('<tool_call>{"name": 1, "arguments": {}}</tool_call>', ""),
        ('<tool_call>{"name": "get_weather", "arguments": {"days": NaN}}</tool_call>', ""),
        ("<tool_call>[" + "[" * 100_000, ""),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", ""),
        ("It is cold.", ""),
        ("", ""),
    ],
)
def test_what_an_answer_passes(text: str, passed: str) -> None:
    assert judge(CASE, text) == {name: name in passed.split() for name in ALL}


def test_abstaining_is_calling_nothing() -> None:
    case = Case(CHAT, None)
    assert judge(case, "I cannot do that.") == {"abstention": True}
    assert judge(case, "Well, <tool_call>") == {"abstention": False}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2).map(lambda x: round(x)) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(JSON, JSON)
def test_json_values_are_equal_as_their_sorted_text_is(one: Any, other: Any) -> None:
    def text(value: Any) -> str:
        return json.dumps(value, sort_keys=True)

    assert same_json(one, other) == (text(one) == text(other))
    assert same_json(one, json.loads(text(one)))


def test_numbers_are_equal_by_value_and_never_to_booleans() -> None:
    assert same_json({"a": [1, 2.0]}, {"a": [1.0, 2]})
    assert not same_json(1, True)
    assert not same_json(0, False)
    assert not same_json(0, None)
    assert not same_json([1], 1)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_any_whole_call_parses(arguments: dict[str, Any]) -> None:
    text = json.dumps({"name": "f", "arguments": arguments})
    if "tool_call>" not in text:
        calls = parsed(f"so <tool_call>{text}</tool_call>")
        assert calls == [Call("f", arguments)]


ANOTHER = json.dumps(
    {
        "messages": [{"role": "user", "content": "a"}],
        "tools": [{"type": "function", "function": {"name": "f"}}, {"name": "h"}],
        "expected": {"name": "g", "arguments": {}},
    }
)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "cases has no tool cases"),
        ("{", "cases, line 1: it is not acceptable JSON: Expecting property name enclosed in double quotes, column 2"),
        ('\n\n{"a": 1, "a": 2}', "cases, line 3: it is not acceptable JSON: key 'a' appears twice"),
        ('{"messages": []}', 'cases, line 1: it is not {"messages"'),
        ('\n{"messages": [], "tools": [], "expected": null}', "cases, line 2: the chat has no messages"),
        (
            '{"messages": [{"role": "user", "content": "a"}], "tools": [1], "expected": null}',
            "cases, line 1: a tool is",
        ),
        ('{"messages": {}, "tools": [], "expected": null}', "cases, line 1: messages and tools are JSON lists"),
        (
            '\n{"messages": [], "tools": [], "expected": {"name": "f"}}',
            'cases, line 2: "expected" is neither {"name": ...,',
        ),
        ('{"messages": [], "tools": [], "expected": false}', '"expected" is neither'),
        (ANOTHER, "cases, line 1: \"expected\" calls 'g', and the case has other tools (f, h); name one of them"),
    ],
)
def test_files_of_cases_that_are_none(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "cases").write_text(content)
    with pytest.raises(UsageError) as raised:
        read_cases(tmp_path / "cases")
    assert sentence in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_cases(tmp_path / "none")


def test_cases_are_read(tmp_path: Path) -> None:
    lines = [{"messages": CHAT.messages, "tools": TOOLS, "expected": {"name": "set_timer", "arguments": {"a": 1}}}]
    lines.append({**lines[0], "expected": None})
    (tmp_path / "cases").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_cases(tmp_path / "cases") == [Case(CHAT, Call("set_timer", {"a": 1})), Case(CHAT, None)]


def test_the_documented_cases_are_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "tools.md").read_text()
    (tmp_path / "cases").write_text(page.split("```json\n")[1].split("```")[0])
    called, silent = read_cases(tmp_path / "cases")
    check_schemas([called, silent])
    assert called.expected == Call("get_weather", {"city": "Oslo"})
    assert silent.expected is None


def test_tools_without_a_schema_are_refused() -> None:
    check_schemas([CASE])
    wrong = Chat(CHAT.messages, [{"name": "f", "parameters": {"type": "strnig"}}])
    with pytest.raises(UsageError, match=r"^f, line 7: the parameters .* are no JSON schema"):
        check_schemas([CASE, Case(wrong, None, "f, line 7")])


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ({"$ref": "http://x/y"}, "'http://x/y' leads nowhere in it"),
        ({"$ref": "#"}, "'#' leads back to itself"),
        ({"$ref": "#/$defs/none"}, "'#/$defs/none' leads nowhere in it"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "'#/properties/a' leads back to itself"),
        ({"allOf": [{"anyOf": [True, {"$ref": "#"}]}]}, "'#' leads back to itself"),
        ({"dependentSchemas": {"a": {"if": {"$ref": "#"}}}}, "'#' leads back to itself"),
        ({"items": {"$dynamicRef": "#none"}}, "'#none' leads nowhere in it"),
        ({"$ref": "#/allOf/x", "allOf": [{}]}, "'#/allOf/x' leads nowhere in it"),
        ({"$ref": "#/title", "title": "text"}, "'text' is not of type 'object', 'boolean'"),
        ({"$ref": "#/x", "x": {"type": "strnig"}}, "'strnig' is not valid"),
        ({"$ref": "#/x", "x": {"items": {"$ref": "#/y"}}}, "'#/y' leads nowhere in it"),
        (json.loads('{"not": ' * 500 + "{}" + "}" * 500), "it is nested too deeply"),
    ],
)
def test_schemas_that_cannot_be_checked_against(schema: dict[str, Any], sentence: str) -> None:
    case = Case(Chat(CHAT.messages, [{"name": "f", "parameters": schema}]), Call("f", {"a": 1}), "f, line 7")
    with pytest.raises(UsageError) as raised:
        check_schemas([case])
    assert str(raised.value).startswith("f, line 7: the parameters ")
    assert sentence in str(raised.value)


TREE = {
    "$defs": {"tree": {"type": "object", "additionalProperties": {"$ref": "#/$defs/tree"}}},
    "properties": {"a": {"$ref": "#/$defs/tree"}, "n": {"multipleOf": 0.1}},
}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"b": value}
    return value


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ({"a": nested(5)}, True),
        ({"a": {"b": {"c": 1}}}, False),
        ({"a": nested(600)}, False),
        ({"n": 0.5}, True),
        ({"n": 10**400}, False),
    ],
)
def test_references_within_a_schema_are_followed_as_deep_as_can_be(arguments: dict[str, Any], allowed: bool) -> None:
    case = Case(Chat(CHAT.messages, [{"name": "f", "parameters": TREE}]), Call("f", {}))
    check_schemas([case])
    assert judge(case, answer("f", **arguments))["schema"] == allowed


def test_a_schema_that_fails_an_answer_names_its_case() -> None:
    parameters = {"properties": {"a": {"$ref": "#/$defs/none"}}}
    case = Case(Chat(CHAT.messages, [{"name": "f", "parameters": parameters}]), Call("f", {}), "f, line 7")
    with pytest.raises(UsageError, match=r"^f, line 7: arguments cannot be checked against their schema"):
        judge(case, answer("f", a=1))


def test_a_rate_and_its_error() -> None:
    rate = Rate.of(np.array([True] * 30 + [False] * 10))
    assert (rate.value, rate.error) == (0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 40)))


@pytest.mark.parametrize("cases", [1, 4, 37, 300])
def test_a_rates_interval_ends_where_the_rate_is_1_96_errors_off(cases: int) -> None:
    """Wilson, 1927: found here by bisection of that condition, there by solving it."""

    def end(share: float, inside: float, outside: float) -> float:
        for _ in range(80):
            middle = (inside + outside) / 2
            near = abs(share - middle) <= 1.959964 * math.sqrt(middle * (1 - middle) / cases)
            inside, outside = (middle, outside) if near else (inside, middle)
        return inside

    for successes in {0, 1, cases // 2, cases}:
        share = successes / cases
        wanted = end(share, share, 0), end(share, share, 1)
        assert Rate(cases, successes).interval == pytest.approx(wanted, abs=1e-6)
    assert Rate(4, 4).document()["interval_95"] == pytest.approx([0.5101, 1], abs=1e-4)


def test_the_paired_bootstrap_agrees_with_another_computation() -> None:
    """Counts of the three possible differences are multinomial: drawn so, and by the formula for their variance."""
    random = np.random.default_rng(0)
    reference = random.random(300) < 0.9
    outcomes = np.where(random.random(300) < 0.85, reference, random.random(300) < 0.5)
    found = paired_difference(outcomes, reference)
    differences = outcomes.astype(int) - reference.astype(int)
    assert found.value == pytest.approx(differences.mean())
    assert found.error == pytest.approx(differences.std() / math.sqrt(300), rel=0.03)
    shares = [(differences == value).mean() for value in (-1, 0, 1)]
    means = (np.random.default_rng(1).multinomial(300, shares, 20_000) @ [-1, 0, 1]) / 300
    assert (found.low, found.high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.005)
    assert paired_difference(outcomes, reference) == found


def test_the_same_outcomes_do_not_differ() -> None:
    outcomes = np.array([True, False, True])
    found = paired_difference(outcomes, outcomes)
    assert (found.value, found.error, found.low, found.high) == (0, 0, 0, 0)
