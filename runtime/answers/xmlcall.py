"""A call as <function=NAME> with a <parameter=KEY> for each argument, read as it comes, given out as JSON.

A value is what stands between its tags, without one newline after the first and one before the last, as templates write
it. It ends at the first </parameter> that is not within a string of a JSON value.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..stops import StopStrings
from .dialect import FUNCTION_END, PARAMETER, PARAMETER_END
from .events import CallArguments, CallBegan, Event
from .jsontext import BLANK, inside_string
from .parameters import argument, parameters_of, types_of

TEXT = frozenset({"string"})


class XmlCall:
    """Reads one call, from after its `<function=`, until `ended`; `began`: its name was given out."""

    def __init__(self, index: int, tools: Sequence[Mapping[str, Any]]) -> None:
        self._index, self._tools = index, tools
        self._held = ""
        self._step: Callable[[], str | None] = self._name
        self._parameters: Any = {}
        self._keys: set[str] = set()
        self._news: list[Event] = []
        self.began = self.ended = False

    def push(self, character: str) -> list[Event]:
        """The events that a character completes. Raises ValueError, with a reason, for what is no call."""
        self._held += character
        self._news = []
        while not self.ended and (said := self._step()) is not None:
            if said:
                self._news.append(CallArguments(self._index, said))
        return self._news

    def _name(self) -> str | None:
        """Each step gives the JSON it found, or None when it needs more text."""
        name = self._until_bracket("function")
        if name is None:
            return None
        self._news.append(CallBegan(self._index, name))
        self._parameters, self.began = parameters_of(name, self._tools), True
        self._step = self._between
        return "{"

    def _between(self) -> str | None:
        self._held = self._held.lstrip(BLANK)
        if self._held.startswith(PARAMETER):
            self._held, self._step = self._held.removeprefix(PARAMETER), self._key
            return ""
        if self._held.startswith(FUNCTION_END):
            self._held, self.ended = self._held.removeprefix(FUNCTION_END), True
            self._news.append(CallArguments(self._index, "}"))
            return None
        if not any(tag.startswith(self._held) for tag in (PARAMETER, FUNCTION_END)):
            raise ValueError("it has something else between its parameters")
        return None

    def _key(self) -> str | None:
        key = self._until_bracket("parameter")
        if key is None:
            return None
        if key in self._keys:
            raise ValueError(f"it has the parameter {key!r:.40} twice")
        before = ", " if self._keys else ""
        self._keys.add(key)
        types = types_of(key, self._parameters)
        self._step = _Value(self, types).step
        return f"{before}{json.dumps(key, ensure_ascii=False)}: "

    def _until_bracket(self, tag: str) -> str | None:
        name, found, rest = self._held.partition(">")
        if (found and not name.strip()) or "\n" in name or "<" in name:
            raise ValueError(f"a <{tag}=...> has no name")
        if not found:
            return None
        self._held = rest
        return name.strip()

    def take(self) -> str:
        """All text that is held, which is then the value's."""
        text, self._held = self._held, ""
        return text

    def value_ended(self) -> None:
        """Go on after a parameter."""
        self._step = self._between


class _Value:
    """One parameter's value: text is given out as it comes, all else when it is complete."""

    def __init__(self, call: XmlCall, types: frozenset[str]) -> None:
        self._call, self._types = call, types
        self._until = StopStrings((PARAMETER_END,))
        self._text = ""  # not given out yet
        self._first, self._quoted = True, False

    def step(self) -> str | None:
        self._text += self._until.push(self._call.take())
        ended = self._until.found is not None and not self._goes_on()
        self._drop_first_newline(ended=ended)
        if ended:
            self._call.value_ended()
            return self._last()
        return self._some() or None

    def _goes_on(self) -> bool:
        """Whether the tag stands in a string of a JSON value, which is then not complete."""
        if self._types == TEXT or not inside_string(self._text):
            return False
        self._text, self._until = self._text + PARAMETER_END, StopStrings((PARAMETER_END,))
        return True

    def _drop_first_newline(self, *, ended: bool) -> None:
        if self._first and (self._text or ended):
            self._text, self._first = self._text.removeprefix("\n"), False

    def _some(self) -> str:
        """As much of a text as can be told: not a newline that may be the last."""
        if self._types != TEXT or self._first:
            return ""
        keep = len(self._text) - self._text.endswith("\n")
        said, self._text = self._text[:keep], self._text[keep:]
        return self._escaped(said) if said else ""

    def _last(self) -> str:
        text = self._text.removesuffix("\n")
        return argument(text, self._types) if self._types != TEXT else self._escaped(text) + '"'

    def _escaped(self, text: str) -> str:
        before, self._quoted = "" if self._quoted else '"', True
        return before + json.dumps(text, ensure_ascii=False)[1:-1]
