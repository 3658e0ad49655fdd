"""Answers held to a grammar: whatever logits say, calls parse and fit their schemas, in both dialects."""

import functools
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moepack.convert.shipped import CHECKPOINT
from moepack.manifests.errors import UsageError
from moepack.runtime.answers.constraint import Constraint, Grammars
from moepack.runtime.answers.dialect import CLOSE, THOUGHT, Calls, Thinking
from moepack.runtime.answers.grammar import Form
from moepack.runtime.answers.message import Assembly, Message
from moepack.runtime.answers.reader import AnswerReader
from moepack.runtime.generate import Generation, Limits, Result
from moepack.runtime.packfiles import LooseFiles
from moepack.runtime.sampling import Logits, Sampler, Sampling
from moepack.runtime.tokenizer import Tokenizer

SIZE = 2060  # the model's vocabulary, of which the last have no text
TOKENIZER = Tokenizer.open(LooseFiles(CHECKPOINT), SIZE)
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 0, "maximum": 14},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "note": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
        "deep": {"$ref": "#/$defs/deep"},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
    "$defs": {"deep": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": True}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
DIALECTS: list[Calls] = ["json", "xml"]


@functools.cache
def grammars() -> Grammars:
    return Grammars(TOKENIZER)


def constraint(form: Form, calls: Calls | None, thinking: Thinking = "never") -> Constraint:
    found = grammars().constraint(form, calls, thinking)
    assert found is not None
    return found


class Noise:
    """A session whose logits are noise, with a liking for some tokens."""

    def __init__(self, seed: int, liking: float, liked: Sequence[int]) -> None:
        self._random, self._liked, self._liking, self.position = np.random.default_rng(seed), liked, liking, 0

    def extend(self, tokens: Sequence[int]) -> Logits:
        self.position += len(tokens)
        logits = self._random.standard_normal(SIZE).astype(np.float32) * 4
        logits[self._liked] += self._liking
        return logits


LIKED = {
    token
    for text in ('<tool_call></tool_call>"}],', "</parameter>\n")
    for token in TOKENIZER.encode(text, add_special_tokens=False)
}


def answer(held: Constraint | None, seed: int, longest: int = 300) -> tuple[Result, str]:
    session = Noise(seed, 4, [*LIKED, *TOKENIZER.end_tokens])
    limits = Limits(longest, 10_000, TOKENIZER.end_tokens)
    sampler = Sampler(Sampling(temperature=1.5, seed=seed))
    generation = Generation(session, [5], sampler, TOKENIZER.stream(special=True), limits, held)
    text = "".join(piece.text for piece in generation)
    return generation.result(), text


def read(text: str, calls: Calls | None, thinking: Thinking = "never") -> Message:
    reader, assembly = AnswerReader(calls, thinking, TOOLS), Assembly()
    assembly.add([*reader.push(text), *reader.finish()])
    return assembly.message()


def accepts(held: Constraint, text: str) -> bool:
    """Whether a text may be said, and the answer may end after it."""
    for token in TOKENIZER.encode(text, add_special_tokens=False):
        if not held.allowed()[token]:
            return False
        held.take(token)
    return bool(held.allowed()[sorted(TOKENIZER.end_tokens)].all())


ONLY_WEATHER, ONLY_CLOCK = (Form(TOOLS, "required", frozenset({name})) for name in ("weather", "clock"))


def call(name: str, arguments: dict[str, Any], calls: Calls) -> str:
    if calls == "json":
        return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'
    tags = "".join(
        f"<parameter={key}>\n{value if isinstance(value, str) else json.dumps(value)}\n</parameter>\n"
        for key, value in arguments.items()
    )
    return f"<tool_call>\n<function={name}>\n{tags}</function>\n</tool_call>"


GOOD = {"city": "Oslo", "days": 3, "unit": "celsius", "note": None, "deep": [True, False]}


@pytest.mark.parametrize("calls", DIALECTS)
@pytest.mark.parametrize("form", [Form(TOOLS), Form(TOOLS, "required"), ONLY_WEATHER])
@pytest.mark.parametrize("thinking", ["never", "begun", "may"])
def test_noise_gives_calls_that_parse_and_fit(form: Form, calls: Calls, thinking: Thinking) -> None:
    seen = 0
    for seed in range(12):
        held, before = constraint(form, calls, thinking), THOUGHT if thinking == "begun" else ""
        for token in TOKENIZER.encode(before, add_special_tokens=False):  # which noise would not say
            held.take(token)
        result, text = answer(held, seed)
        if result.finish != "stop":
            assert result.finish == "length"
            continue
        said = read(before + text, calls, thinking)
        assert not said.malformed
        assert all(each.whole for each in said.calls)
        for each in said.calls:
            fits = PARAMETERS if each.name == "weather" else {"type": "object"}
            jsonschema.Draft202012Validator(fits).validate(json.loads(each.arguments))
        if form.required:
            assert said.calls
            assert said.content is None
        seen += len(said.calls)
    assert seen or thinking == "may" or not form.required  # else noise may think, or chat, until it is cut


@pytest.mark.parametrize("calls", DIALECTS)
def test_what_templates_write_is_allowed(calls: Calls) -> None:
    good, clock = call("weather", GOOD, calls), call("clock", {}, calls)
    assert accepts(constraint(Form(TOOLS), calls), f"I look.\n\n{good}\n{clock}")
    assert accepts(constraint(Form(TOOLS), calls), "No <tool> fits <tool_")
    assert accepts(constraint(Form(TOOLS, "required"), calls), f"{good}\n{good}")
    assert accepts(constraint(ONLY_CLOCK, calls, "begun"), f"hm <tool_call>\n</think>\n\n{clock}")
    assert accepts(constraint(ONLY_CLOCK, calls, "may"), clock)
    assert accepts(constraint(Form(TOOLS), calls, "may"), f"<think>\n<tool_call> x\n</think>\n\nso {clock}")


@pytest.mark.parametrize("calls", DIALECTS)
@pytest.mark.parametrize(
    ("form", "name", "arguments"),
    [
        (Form(TOOLS), "wether", GOOD),
        (Form(TOOLS), "weather", {**GOOD, "days": 15}),
        (Form(TOOLS), "weather", {**GOOD, "unit": "kelvin"}),
        (Form(TOOLS), "weather", {**GOOD, "city": "Longyearbyen"}),
        (Form(TOOLS), "weather", {**GOOD, "deep": [1]}),
        (Form(TOOLS), "weather", {"city": "Oslo"}),
        (Form(TOOLS), "weather", {**GOOD, "more": "x"}),
        (ONLY_CLOCK, "weather", GOOD),
        (Form(TOOLS, "none"), "weather", GOOD),
        (Form(TOOLS, "auto", frozenset({"clock"})), "weather", GOOD),
    ],
)
def test_what_does_not_fit_cannot_be_said(form: Form, name: str, arguments: dict[str, Any], calls: Calls) -> None:
    assert not accepts(constraint(form, calls), call(name, arguments, calls))


@pytest.mark.parametrize("calls", DIALECTS)
def test_one_call_where_parallel_ones_are_not_wanted(calls: Calls) -> None:
    one = call("clock", {}, calls)
    for form in (Form(TOOLS, parallel=False), Form(TOOLS, "required", parallel=False)):
        assert accepts(constraint(form, calls), one)
        assert not accepts(constraint(form, calls), f"{one}\n{one}")


@pytest.mark.parametrize("calls", DIALECTS)
def test_some_tools_may_be_called_or_none(calls: Calls) -> None:
    form = Form([{"type": "function", "function": {"name": name}} for name in "abc"], "auto", frozenset("ab"))
    assert accepts(constraint(form, calls), f"so\n{call('a', {}, calls)}\n{call('b', {}, calls)}")
    assert accepts(constraint(form, calls), "so")
    assert not accepts(constraint(form, calls), call("c", {}, calls))


@pytest.mark.parametrize("form", [Form(TOOLS), Form(TOOLS, "none")])
def test_a_tag_closes_nothing_but_a_call(form: Form) -> None:
    assert accepts(constraint(form, "json"), "so")
    assert not accepts(constraint(form, "json"), f"so\n{CLOSE}")
    if form.choice == "auto":
        assert not accepts(constraint(form, "json"), f"{call('clock', {}, 'json')}\n{CLOSE}")


def test_a_required_call_cannot_be_left_out() -> None:
    assert not constraint(Form(TOOLS, "required"), "json").allowed()[sorted(TOKENIZER.end_tokens)].any()


def test_a_tag_is_the_same_in_whatever_tokens_and_only_its_call_may_follow() -> None:
    held = constraint(Form(TOOLS), "json")
    spelled = [TOKENIZER.encode(part, add_special_tokens=False) for part in ("<", "tool", "_call>")]
    for token in [token for tokens in spelled for token in tokens]:
        assert held.allowed()[token]
        held.take(token)
    forced = list[int]()
    while len(only := np.flatnonzero(held.allowed())) == 1:
        forced.append(int(only[0]))
        held.take(forced[-1])
    assert TOKENIZER.decode(forced).startswith('\n{"name": "')


def test_only_tokens_with_a_text_may_come() -> None:
    allowed = constraint(Form(TOOLS), "json").allowed()
    assert allowed.shape == (SIZE,)
    assert not allowed[2048:].any()
    start = TOKENIZER.encode("<|im_start|>", add_special_tokens=False)
    assert not allowed[start].any()
    assert allowed[sorted(TOKENIZER.end_tokens)].all()


@pytest.mark.parametrize("thinking", ["never", "begun"])
def test_an_answer_can_be_held_to_json(thinking: Thinking) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99}}, "required": ["a"]}
    schema["additionalProperties"] = False
    for seed in range(5):
        result, text = answer(constraint(Form(response=schema), "json", thinking), seed)
        if result.finish == "stop":
            jsonschema.Draft202012Validator(schema).validate(json.loads(text.partition("</think>")[2] or text))
    before = "" if thinking == "never" else "</think>\n\n"
    assert accepts(constraint(Form(response=schema), None, thinking), before + '{\n  "a": 1\n}')
    assert not accepts(constraint(Form(response={"type": "object"}), None, thinking), before + "[]")


def test_an_answer_may_be_json_or_a_call() -> None:
    form = Form(TOOLS, response={"type": "object"})
    assert accepts(constraint(form, "json"), call("clock", {}, "json"))
    assert accepts(constraint(form, "json"), "{}")
    assert not accepts(constraint(form, "json"), "well")


@pytest.mark.parametrize("form", [Form(), Form([CLOCK]), Form([CLOCK], "auto", parallel=False), Form((), "none")])
def test_nothing_is_held_where_nothing_is_asked(form: Form) -> None:
    assert grammars().constraint(form, "json", "may") is None


@pytest.mark.parametrize(
    ("schema", "calls", "keyword"),
    [
        ({"type": "object", "properties": {"a": {"not": {}}}}, "json", "not"),
        ({"type": "object", "properties": {"a": {"type": "string", "format": "x"}}}, "json", "format: x"),
        ({"type": "object", "if": {}}, "json", "if"),
        ({"type": "object", "if": {}}, "xml", "if"),
        ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, "xml", "uniqueItems"),
        ({"type": "object", "properties": {"a": {"type": "string", "allOf": []}}}, "xml", "allOf"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "^a|b"}}}, "xml", "anchors"),
        ({"type": "object", "properties": {"a>": {}}}, "xml", "cannot stand in a tag"),
        ({"type": "object", "required": ["a"]}, "xml", "required"),
        ({"$ref": "#/nowhere"}, "xml", r"\$ref"),
    ],
)
def test_a_schema_that_cannot_be_held_to_is_refused_by_its_keyword(schema: Any, calls: Calls, keyword: str) -> None:
    tool = {"name": "f", "parameters": schema, "strict": True}
    with pytest.raises(UsageError, match=f"cannot be held to.*{keyword}"):
        grammars().constraint(Form([tool]), calls, "never")


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "string", "pattern": "(?=a)b"}, "regex parse error: (?=a)b: look-around, including look-ahead and"),
        ({"type": "string", "pattern": "a\n("}, "regex parse error: a\\n(: unclosed group"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf constraints are not supported"),
    ],
)
def test_why_a_schema_cannot_be_held_to_is_told_in_one_line(schema: Any, told: str) -> None:
    with pytest.raises(UsageError, match=f"^the response's schema cannot be held to: {re.escape(told)}") as refused:
        grammars().constraint(Form(response=schema), "json", "never")
    assert "\n" not in str(refused.value)
    assert "coerce" not in str(refused.value)


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("^[a-c]+$", "abc", True),
        ("^[a-c]+$", "abcd", False),
        ("b", "abc", True),
        ("b", "ac", False),
        ("^(a|b)$", "b", True),
        ("a\\$$", "xa$", True),
        ("^a", "ba", False),
    ],
)
def test_patterns_of_bare_text_mean_what_schemas_say(pattern: str, text: str, fits: bool) -> None:
    tool = {"name": "f", "parameters": {"properties": {"a": {"type": "string", "pattern": pattern}}}, "strict": True}
    assert accepts(constraint(Form([tool]), "xml"), call("f", {"a": text}, "xml")) == fits


def test_requests_that_no_tool_can_answer_are_refused() -> None:
    for form in (Form((), "required"), Form(TOOLS, "required", frozenset({"other"}))):
        with pytest.raises(UsageError, match="no such tool"):
            grammars().constraint(form, "json", "never")
    with pytest.raises(UsageError, match="chat template"):
        grammars().constraint(Form(TOOLS), None, "never")
    with pytest.raises(UsageError, match="needs a name"):
        grammars().constraint(Form([{}], "required"), "json", "never")


def test_without_llguidance_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match=r"needs llguidance; install it with `pip install '\.\[server\]'`"):
        Grammars(TOKENIZER)


def test_without_a_constraint_tokens_are_those_they_always_were() -> None:
    plain, _ = answer(None, 3, 40)
    sampler, session = Sampler(Sampling(temperature=1.5, seed=3)), Noise(3, 4, [*LIKED, *TOKENIZER.end_tokens])
    expected = [sampler.choose(session.extend([0])) for _ in plain.tokens]
    assert list(plain.tokens) == expected


def test_a_choice_among_some_sees_only_them() -> None:
    logits, allowed = np.array([9, 1, 8, 2], np.float32), np.array([False, True, False, True])
    assert Sampler(Sampling()).choose(logits, allowed) == 3
    chosen = {Sampler(Sampling(temperature=9, top_k=2, seed=seed)).choose(logits, allowed) for seed in range(30)}
    assert chosen == {1, 3}
    assert Sampler(Sampling(temperature=9)).choose(logits, np.array([False, True, False, False])) == 1


STRINGS = st.fixed_dictionaries({"type": st.just("string")}, optional={"maxLength": st.integers(1, 6)})
LEAVES = st.one_of(
    STRINGS,
    st.just({"type": "integer", "minimum": -9, "maximum": 99}),
    st.just({"type": "boolean"}),
    st.just({"enum": ["red", "a b", "<x>"]}),
    st.just({"type": ["string", "null"]}),
    st.just({"anyOf": [{"type": "integer", "maximum": 9, "minimum": 0}, {"type": "boolean"}]}),
    st.just({"type": ["string", "integer"], "maxLength": 4, "minimum": 0, "maximum": 9}),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items, "maxItems": 2}, inner),
        st.builds(lambda value: {"type": "object", "properties": {"k": value}, "additionalProperties": False}, inner),
    ),
    max_leaves=2,
)
SCHEMAS = st.dictionaries(st.sampled_from(["a", "b_c", "é"]), VALUES, max_size=3).flatmap(
    lambda properties: st.builds(
        lambda required: {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        },
        st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([]),
    )
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEMAS, st.sampled_from(DIALECTS), st.integers(0, 99))
def test_random_tools_are_called_as_their_schemas_say(schema: dict[str, Any], calls: Calls, seed: int) -> None:
    tools = [{"name": "f", "parameters": schema, "strict": True}]
    result, text = answer(constraint(Form(tools, "required", parallel=False), calls), seed, longest=400)
    if result.finish == "length":
        return
    reader, assembly = AnswerReader(calls, "never", tools), Assembly()
    assembly.add([*reader.push(text), *reader.finish()])
    (made,) = assembly.message().calls
    assert made.whole
    jsonschema.Draft202012Validator(schema).validate(json.loads(made.arguments))
