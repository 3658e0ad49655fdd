"""What a request asks of an answer's form, as a grammar in llguidance's Lark dialect, for both ways to write calls.

A strict tool's arguments are held to its schema, another's to be a JSON object; names to those of tools. A call is
written as templates write it. Object keys come in the schema's order. Thinking is free. Knows nothing of tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...manifests.errors import UsageError
from .dialect import CLOSE, FUNCTION, FUNCTION_END, OPEN, THINK, THOUGHT, Calls, Thinking
from .parameters import functions
from .xmlgrammar import xml_arguments

Choice = Literal["none", "auto", "required"]
BLANKS = r"[ \t\r\n]"
# In arguments, what templates print; in an answer that is JSON, what people read, but blanks without end to no token.
TIGHT = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
LOOSE = {"whitespace_pattern": r"[ \n]{1,16}"}  # a line end and an indent: more would be blanks for their own sake


@dataclass(frozen=True)
class Form:
    """What an answer may be.

    `tools` may be called as `choice` says, those of `allowed` names only if it is given; `parallel`: several in an
    answer. `strict`: every tool is, whatever it says itself. `response`: the JSON schema of an answer that calls
    nothing.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    choice: Choice = "auto"
    allowed: frozenset[str] | None = None
    parallel: bool = True
    strict: bool = False
    response: Mapping[str, Any] | None = None

    @property
    def required(self) -> bool:
        """Whether a tool must be called."""
        return self.choice == "required"

    def offered(self) -> list["Offer"]:
        """The tools that may be called. Raises UsageError if one must be, and there is none."""
        if self.choice == "none":
            return []
        offers = [Offer.of(each, strict=self.strict) for each in functions(self.tools)]
        if self.allowed is not None:
            offers = [offer for offer in offers if offer.name in self.allowed]
        if self.required and not offers:
            said = " or ".join(sorted(self.allowed or ())) or "a tool"
            raise UsageError(f"a call of {said} is required, and no such tool is given")
        return offers


@dataclass(frozen=True)
class Offer:
    """A tool that may be called; `parameters` is the schema of its arguments."""

    name: str
    parameters: Any
    strict: bool

    @classmethod
    def of(cls, function: Mapping[str, Any], *, strict: bool) -> "Offer":
        """Raises UsageError for a tool without a name."""
        if not isinstance(name := function.get("name"), str) or not name:
            raise UsageError(f"a tool needs a name; got {dict(function)!r:.100}")
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        return cls(name, parameters, strict or function.get("strict") is True)


def grammar(form: Form, calls: Calls | None, thinking: Thinking) -> str | None:
    """The grammar of an answer, None where any answer will do.

    Raises UsageError for what the pack's template has no calls for, and for schemas that the dialect cannot write.
    """
    offers = form.offered()
    if calls is None and offers and (form.required or any(offer.strict for offer in offers)):
        raise UsageError("tools can be required or strict only where the pack's chat template has calls; it has none")
    if form.required:
        return _lark(thinking, _called(form, offers, calls), "calls")
    if form.response is not None:
        body = "calls | response" if offers and calls else "response"
        rules = _called(form, offers, calls) if offers and calls else []
        return _lark(thinking, [*rules, f"response: {json_rule(form.response, LOOSE)}"], body)
    if calls and form.tools and not offers:
        return _lark_free(thinking, [], "")
    if any(offer.strict for offer in offers) or (calls and form.allowed is not None):
        return _lark_free(thinking, _called(form, offers, calls), "*" if form.parallel else "?")
    return None


def json_rule(schema: Any, spacing: Mapping[str, Any]) -> str:
    """A rule's body for JSON that a schema allows."""
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise UsageError(f"{schema!r:.60} is no JSON schema that anything fits; give an object")
    return f"%json {json.dumps({**schema, 'x-guidance': dict(spacing)})}"


def literal(text: str) -> str:
    """A text in a grammar."""
    return json.dumps(text, ensure_ascii=False)


def _called(form: Form, offers: Sequence[Offer], calls: Calls | None) -> list[str]:
    """The rules of one call, from after its tag, and of an answer that only calls."""
    rules = [f"calls: {literal(OPEN)} call" + (f" ({literal(chr(10) + OPEN)} call)*" if form.parallel else "")]
    rules.append(f'call: "\\n" ({" | ".join(f"tool_{i}" for i in range(len(offers)))}) {literal(chr(10) + CLOSE)}')
    for number, offer in enumerate(offers):
        rules += _xml_tool(number, offer) if calls == "xml" else _json_tool(number, offer)
    return rules


def _json_tool(number: int, offer: Offer) -> list[str]:
    before = f'{{"name": {literal(offer.name)}, "arguments": '
    schema = offer.parameters if offer.strict and offer.parameters is not True else {"type": "object"}
    if isinstance(schema, dict) and "object" in schema.get("type", ["object"]):
        schema = {**schema, "type": "object"}
    return [
        f"tool_{number}: {literal(before)} args_{number} {literal('}')}",
        f"args_{number}: {json_rule(schema, TIGHT)}",
    ]


def _xml_tool(number: int, offer: Offer) -> list[str]:
    named, rules = xml_arguments(offer.name, offer.parameters, f"tool_{number}_", strict=offer.strict)
    head, end = literal(f"{FUNCTION}{offer.name}>\n"), literal(FUNCTION_END)
    return [f"tool_{number}: {' '.join([head, *named, end])}", *rules]


def _lark(thinking: Thinking, rules: Sequence[str], body: str) -> str:
    """An answer that is `body` and nothing else, after the thinking."""
    thought, start = {
        "never": ([], body),
        "begun": ([_thought("")], f'thought "\\n\\n" ({body})'),
        "may": ([_thought(THINK)], f'(thought "\\n\\n")? ({body})'),
    }[thinking]
    return "\n".join(["%llguidance {}", f"start: {start}", *thought, *rules, ""])


def _lark_free(thinking: Thinking, rules: Sequence[str], times: str) -> str:
    """Any text, in which the tags of a call are around one."""
    tag = f"(?s:.*)({_escaped(OPEN)}|{_escaped(CLOSE)})(?s:.*)"
    text = [f"TEXT: /(?s:.*)/ & ~/{tag}/"]
    if times:
        text += ["free: (head call)" + times + " TEXT", "head[lazy]: HEAD", f"HEAD: TEXT {literal(OPEN)}"]
    else:
        text.append("free: TEXT")
    if thinking != "may":
        start = "thought free" if thinking == "begun" else "free"
        thought = [_thought("")] if thinking == "begun" else []
        return "\n".join(["%llguidance {}", f"start: {start}", *thought, *text, *rules, ""])
    # An answer that begins to think must not be taken for a text: a call within its thoughts is none.
    plain = [f"PLAIN: TEXT & ~/{BLANKS}*{_escaped(THINK)}(?s:.*)/"]
    start = "thought free | PLAIN"
    if times:
        start += f" | first call {'free' if times == '*' else 'TEXT'}"
        plain += ["first[lazy]: FIRST", f"FIRST: PLAIN {literal(OPEN)}"]
    return "\n".join(["%llguidance {}", f"start: {start}", _thought(THINK), *plain, *text, *rules, ""])


def _thought(begins: str) -> str:
    blanks = f"{BLANKS}*{_escaped(begins)}" if begins else ""
    return f"thought[lazy]: /{blanks}(?s:.*){_escaped(THOUGHT)}/"


def _escaped(tag: str) -> str:
    return tag.replace("/", "\\/")
