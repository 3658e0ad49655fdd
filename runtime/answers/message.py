"""A whole answer, put together from its events: for a client, and for the template that renders it again."""

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .events import CallArguments, CallBegan, CallEnded, Content, Event, Malformed, Thinking

LARGEST = sys.float_info.max
_ID = re.compile(r"call_(\d{8})", re.ASCII)


@dataclass(frozen=True)
class ToolCall:
    """A call; `arguments` is the JSON as the model wrote it, only its beginning where the call is not `whole`."""

    id: str
    name: str
    arguments: str
    whole: bool


@dataclass(frozen=True)
class Message:
    """What the model said. None: it said nothing of that kind."""

    content: str | None
    reasoning: str | None
    calls: tuple[ToolCall, ...]
    malformed: tuple[Malformed, ...]

    def document(self) -> dict[str, Any]:
        """As OpenAI's API gives it: arguments are a text. A call that was cut is in it, as in the stream."""
        found: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning is not None:
            found["reasoning_content"] = self.reasoning
        if self.calls:
            found["tool_calls"] = [_call(call, call.arguments) for call in self.calls]
        return found

    def turn(self) -> dict[str, Any]:
        """As chat templates read it: arguments are an object. Only whole calls, for no template can write others."""
        whole = [_call(call, arguments_value(call.arguments)) for call in self.calls if call.whole]
        return {**self.document(), "content": self.content or "", "tool_calls": whole or None}


class Assembly:
    """Takes an answer's events; its calls' ids count on from `first`, so that a conversation has none twice."""

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._names: list[str] = []
        self._arguments: list[str] = []
        self._whole: set[int] = set()
        self._malformed: list[Malformed] = []

    def add(self, events: Iterable[Event]) -> None:
        """Take more events."""
        for event in events:
            self._add(event)

    def message(self) -> Message:
        """The answer so far."""
        calls = enumerate(zip(self._names, self._arguments, strict=True))
        return Message(
            content="".join(self._content) or None,
            reasoning="".join(self._reasoning) or None,
            calls=tuple(ToolCall(call_id(self._first + i), *call, whole=i in self._whole) for i, call in calls),
            malformed=tuple(self._malformed),
        )

    def _add(self, event: Event) -> None:
        match event:
            case Thinking(text):
                self._reasoning.append(text)
            case Content(text):
                self._content.append(text)
            case CallBegan(_, name):
                self._names.append(name)
                self._arguments.append("")
            case CallArguments(index, text):
                self._arguments[index] += text
            case CallEnded(index):
                self._whole.add(index)
            case Malformed():
                self._malformed.append(event)


def call_id(number: int) -> str:
    """The id of a conversation's call of that number."""
    return f"call_{number:08d}"


def next_call(ids: Iterable[Any]) -> int:
    """A number above those of a conversation's calls, of which a client may have left out some."""
    matches = (_ID.fullmatch(each) for each in ids if isinstance(each, str))
    return max((int(match[1]) for match in matches if match), default=-1) + 1


def arguments_value(arguments: str) -> Any:
    """Numbers beyond a double, which JSON may have, become the largest: a template would print them as no JSON."""
    return json.loads(arguments, parse_float=lambda text: max(-LARGEST, min(LARGEST, float(text))))


def _call(call: ToolCall, arguments: Any) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
