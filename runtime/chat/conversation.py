"""A conversation: who said what, with which tools, in OpenAI's shape, which is also how it is saved.

Promises that what is in it can be rendered: calls are whole, their arguments JSON objects. Knows no tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from ...manifests.errors import UsageError
from ..answers.message import Message, arguments_value, next_call
from ..prompt import Chat

Tools: TypeAlias = list[dict[str, Any]]


class Function(Struct, forbid_unknown_fields=True):
    """What a call calls; `arguments` is a JSON object as a text."""

    name: str
    arguments: str

    def __post_init__(self) -> None:
        try:
            value = json.loads(self.arguments)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the arguments of {self.name:.60} are not JSON") from error
        if not isinstance(value, dict):
            raise ValueError(f"the arguments of {self.name:.60} are not a JSON object")


class Call(Struct, forbid_unknown_fields=True):
    """A call of a tool."""

    id: str
    function: Function
    type: Literal["function"] = "function"


class Entry(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One message. `name`, of a tool's result, is the tool's, which some templates print."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> "Entry":
        """A message of a messages file, in which arguments may be objects. Raises UsageError for any other."""
        try:
            return msgspec.convert({**message, "tool_calls": _spelled(message.get("tool_calls"))}, cls)
        except (msgspec.ValidationError, LookupError, TypeError, ValueError) as error:
            raise UsageError(f"a message that chat cannot take, {message!s:.60}: {error!s:.200}") from error

    @classmethod
    def said(cls, message: Message) -> "Entry":
        """What the model said; a call that was cut is left out, for no template can write it."""
        calls = [Call(call.id, Function(call.name, call.arguments)) for call in message.calls if call.whole]
        return cls("assistant", message.content or "", message.reasoning, calls or None)

    def rendered(self) -> dict[str, Any]:
        """As templates read it: arguments are objects."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        for call in found.get("tool_calls") or ():
            call["function"]["arguments"] = arguments_value(call["function"]["arguments"])
        return found


@dataclass
class Conversation:
    """`entries` in order, the system's first if there is one; `variables` are what the template may read besides."""

    entries: list[Entry] = field(default_factory=list)
    tools: Tools | None = None
    variables: dict[str, Any] = field(default_factory=dict)

    @property
    def system(self) -> str | None:
        """The text of the system message."""
        return self.entries[0].content if self.entries and self.entries[0].role == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.entries[self.system is not None :]
        self.entries = rest if text is None else [Entry("system", text), *rest]

    @property
    def first_call(self) -> int:
        """The number of the next answer's first call."""
        return next_call(call.id for entry in self.entries for call in entry.tool_calls or ())

    @property
    def asks(self) -> bool:
        """Whether it is the model's turn."""
        return bool(self.entries) and self.entries[-1].role in ("user", "tool")

    @property
    def thought(self) -> str:
        """The thinking of the last answer, and of those before it that called tools for it."""
        asked = max((index for index, entry in enumerate(self.entries) if entry.role == "user"), default=0)
        return "\n".join(entry.reasoning_content for entry in self.entries[asked:] if entry.reasoning_content)

    def ask(self, text: str) -> None:
        """Add the user's message."""
        self.entries.append(Entry("user", text))

    def answer(self, call: Call, text: str) -> None:
        """Add what a tool gave."""
        self.entries.append(Entry("tool", text, tool_call_id=call.id, name=call.function.name))

    def reset(self) -> None:
        """Keep the system message and the tools only."""
        del self.entries[int(self.system is not None) :]

    def chat(self, *more: Entry) -> Chat:
        """As templates read it, with `more` after it."""
        messages = [entry.rendered() for entry in (*self.entries, *more)]
        return Chat(messages, self.tools or None, self.variables)


def check_tools(tools: Sequence[Mapping[str, Any]], name: str) -> Tools:
    """Tools in OpenAI's shape. Raises UsageError, which says which of them is not."""
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UsageError(f'{name}: tool {index} is not {{"type": "function", "function": {{"name": ...}}}}')
    return [dict(tool) for tool in tools]


def _spelled(calls: Any) -> Any:
    """Calls whose arguments are texts."""
    if calls is None:
        return None
    found = [{"id": "", **call, "function": {**call["function"]}} for call in calls]
    for call in found:
        if not isinstance(arguments := call["function"].get("arguments"), str):
            call["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
    return found
