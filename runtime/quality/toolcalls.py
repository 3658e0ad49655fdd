"""Tool calls: the cases to ask, what an answer says, and whether it is right.

An answer's calls are the JSON between its <tool_call> tags. Of an answer that should call a tool:
parse: there is a call, and every one is whole: both tags, JSON, an object with a name and an object of arguments;
schema: it parses, and every call names a tool of the case and has arguments that its JSON schema allows;
tool: it parses, and there is one call, of the expected tool; arguments: and its arguments are the expected JSON value.
Of an answer that should not call one, abstention: no <tool_call> in it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...manifests import canonical
from ...manifests.errors import CorruptInputError, UsageError
from ..prompt import Chat
from .schemas import allows, libraries, require_sound

OPEN, CLOSE = "<tool_call>", "</tool_call>"
LEAST_CASES = 200  # for rates that can be told apart
MAX_BYTES = 256 * 1024 * 1024
CHECKS = ("parse", "schema", "tool", "arguments")
ABSTENTION = "abstention"
_BLOCK = re.compile(f"{OPEN}(.*?)(?:{CLOSE}|\\Z)", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """A tool's name and its arguments, any JSON object."""

    name: str
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, value: Any) -> "Call | None":
        """The call that a JSON value is, or None."""
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        arguments = value.get("arguments")
        return cls(value["name"], arguments) if isinstance(arguments, dict) else None


@dataclass(frozen=True)
class Case:
    """A chat with tools, and the one call that answers it; None where the right answer calls nothing.

    `where` is the file and line that a complaint names.
    """

    chat: Chat
    expected: Call | None
    where: str = field(default="a tool case", compare=False)

    def failure(self, error: UsageError) -> UsageError:
        """The same error, with its place."""
        return UsageError(f"{self.where}: {error}")


def read_cases(path: Path) -> list[Case]:
    """Cases from JSON lines: {"messages": [...], "tools": [...], "expected": {"name", "arguments"} or null}.

    Raises UsageError naming the file and line that is anything else, and for a file without cases.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} has more than {MAX_BYTES} bytes; give fewer cases")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    cases = [_case(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not cases:
        raise UsageError(
            f"{path} has no tool cases; give JSON lines, at least {LEAST_CASES} for rates that can be told"
        )
    return cases


def _case(line: bytes, where: str) -> Case:
    try:
        return _case_of(_json(line), where)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _case_of(value: Any, where: str) -> Case:
    if not isinstance(value, dict) or value.keys() != {"messages", "tools", "expected"}:
        raise UsageError('it is not {"messages": [...], "tools": [...], "expected": {...}}')
    expected = None if value["expected"] is None else Call.of(value["expected"])
    if expected is None and value["expected"] is not None:
        raise UsageError('"expected" is neither {"name": ..., "arguments": {...}} nor null, which asks for no call')
    if not isinstance(value["messages"], list) or not isinstance(value["tools"], list):
        raise UsageError("messages and tools are JSON lists")
    chat = Chat(value["messages"], value["tools"])
    if expected is not None:
        _require_offered(expected.name, chat)
    return Case(chat, expected, where)


def _require_offered(name: str, chat: Chat) -> None:
    offered = [str(function.get("name")) for function in _functions(chat.tools or ())]
    if name not in offered:
        listed = ", ".join(offered) or "none"
        raise UsageError(
            f'"expected" calls {name!r:.60}, and the case has other tools ({listed:.200}); name one of them'
        )


def _json(line: bytes) -> Any:
    try:
        return canonical.decode(line, "it", canonical.OWN)
    except CorruptInputError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError):  # whose own line number is that within the line
            raise UsageError(f"it is not acceptable JSON: {cause.msg}, column {cause.colno}") from error
        raise UsageError(str(error)) from error


def judge(case: Case, answer: str) -> dict[str, bool]:
    """Which of CHECKS an answer passes; or, where nothing should be called, ABSTENTION."""
    if case.expected is None:
        return {ABSTENTION: OPEN not in answer}
    calls = parsed(answer)
    if calls is None:
        return dict.fromkeys(CHECKS, False)
    tool = len(calls) == 1 and calls[0].name == case.expected.name
    return {
        "parse": True,
        "schema": all(_allowed(call, case) for call in calls),
        "tool": tool,
        "arguments": tool and same_json(calls[0].arguments, case.expected.arguments),
    }


def parsed(answer: str) -> list[Call] | None:
    """The calls of an answer, at least one; None if there is none or one is not whole."""
    blocks = list(_BLOCK.finditer(answer))
    calls = [_parse(block[1]) for block in blocks if block[0].endswith(CLOSE)]
    found = [call for call in calls if call is not None]
    return found if found and len(found) == len(blocks) else None


def _parse(text: str) -> Call | None:
    try:
        return Call.of(json.loads(text, parse_constant=_refuse))
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def same_json(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: numbers by value (1 is 1.0), true and 1 never."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other)


def _allowed(call: Call, case: Case) -> bool:
    functions = _functions(case.chat.tools or ())
    schema = next((each.get("parameters", {}) for each in functions if each.get("name") == call.name), None)
    try:
        return schema is not None and allows(schema, call.arguments)
    except UsageError as error:
        raise case.failure(error) from error


def _functions(tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The tools' functions, wrapped as OpenAI writes them ({"type": "function", "function": ...}) or bare."""
    return [tool["function"] if isinstance(tool.get("function"), dict) else tool for tool in tools]


def check_schemas(cases: Sequence[Case]) -> None:
    """Raise UsageError if a tool's parameters are no sound schema, naming the case, or if nothing can check them."""
    libraries()
    seen: dict[str, Case] = {}
    for case in cases:
        for function in _functions(case.chat.tools or ()):
            seen.setdefault(json.dumps(function.get("parameters", {})), case)
    for text, case in seen.items():
        try:
            require_sound(json.loads(text))
        except UsageError as error:
            fault = f"the parameters {text:.80} of a tool are no JSON schema that can be checked: {error}"
            raise case.failure(UsageError(fault)) from error
