"""An answer's text, in pieces of any size, as events; special tokens, such as <tool_call>, are spelled out in it.

Promises: however the text is cut, the joined events are the same, and no markup is in content, not even a part of it.
`<tool_call>` is markup if a call's beginning follows (`{`, or `<function=`), and a `</tool_call>` that closes nothing
if it begins a line or follows a call; else they are what the model wrote about, and content. Thinking is told only
where an answer begins, and nothing inside of it is a call. Blanks between thinking, content and calls are the
template's, and belong to none of them; all others stay.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..stops import StopStrings
from .dialect import CLOSE, FUNCTION, OPEN, THINK, THOUGHT, Calls, Thinking
from .events import CallArguments, CallEnded, Content, Event, Malformed
from .events import Thinking as Thought
from .jsoncall import JsonCall
from .jsontext import BLANK
from .xmlcall import XmlCall

UNFINISHED = "the answer ended inside it"
LEAST_OF_TAG = len("<tool")  # less of a tag at the end of an answer is a text that ends in a bracket


class AnswerReader:
    """Reads one answer: `push` each piece, then `finish`, once.

    `calls` is how calls are written, None to read none: <tool_call> is then a text like any other.
    """

    def __init__(self, calls: Calls | None, thinking: Thinking, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._calls, self._tools = calls, tools
        self._events: list[Event] = []
        self._held = ""  # cannot be told yet
        self._blanks = ""  # belong to what comes after them
        self._thinking = self._said = False  # some thinking, some content was
        self._apart = False  # since the last content there was something else
        self._index = 0
        self._call: JsonCall | XmlCall | None = None
        self._raw: list[str] = []  # the call under way
        self._last = ""  # of its arguments, which would make them whole
        self._why = UNFINISHED
        starts: dict[Thinking, Callable[[str], None]] = {"may": self._beginning, "begun": self._thought}
        self._until = StopStrings((THOUGHT,)) if thinking == "begun" else self._until_call()
        self._read = starts.get(thinking, self._content)

    @property
    def thinking(self) -> bool:
        """Whether thinking has begun, and has not ended."""
        return self._read == self._thought

    def push(self, text: str) -> list[Event]:
        """The events that a piece of text completes."""
        for character in text:  # one by one, so that no cut can make a difference
            self._read(character)
        return self._given()

    def finish(self) -> list[Event]:
        """The last events, when no more text will come."""
        rest = self._held + self._until.finish()
        if self._raw:
            self._malformed("".join(self._raw), self._why)
        elif len(rest.lstrip(BLANK)) >= LEAST_OF_TAG and not self._writes_about(rest):
            self._malformed(rest, UNFINISHED)
        else:
            (self._think if self._read == self._thought else self._say)(rest)
        if self._blanks and not self._apart and self._read != self._thought:
            self._events.append(Content(self._blanks))
        return self._given()

    def _given(self) -> list[Event]:
        events, self._events = _merged(self._events), []
        return events

    def _until_call(self) -> StopStrings:
        return StopStrings((OPEN, CLOSE) if self._calls else ())

    def _beginning(self, character: str) -> None:
        self._held += character
        text = self._held.lstrip(BLANK)
        if text == THINK:
            self._held, self._read, self._until = "", self._thought, StopStrings((THOUGHT,))
        elif not THINK.startswith(text):
            self._again(self._content)

    def _thought(self, character: str) -> None:
        self._think(self._until.push(character))
        if self._until.found is not None:
            self._blanks, self._apart = "", True
            self._read, self._until = self._content, self._until_call()

    def _content(self, character: str) -> None:
        self._say(self._until.push(character))
        if self._until.found == OPEN:
            self._read, self._raw = self._opened, [OPEN]
        elif self._until.found == CLOSE:
            self._closed()

    def _closed(self) -> None:
        """After </tool_call>, with nothing to close."""
        self._until = self._until_call()
        if self._writes_about(CLOSE):
            self._say(CLOSE)
        else:
            self._apart = True

    def _writes_about(self, tag: str) -> bool:
        """Whether a closing tag, or what there is of it, is the model's text: within a line, and not after a call."""
        within = self._said and not self._apart and "\n" not in self._blanks
        return within and self._read == self._content and CLOSE.startswith(tag)

    def _opened(self, character: str) -> None:
        """After <tool_call>: is it one?"""
        self._held += character
        self._raw.append(character)
        beginning, text = FUNCTION if self._calls == "xml" else "{", self._held.lstrip(BLANK)
        if text == beginning:
            self._begin()
        elif not beginning.startswith(text):
            self._raw, self._until = [], self._until_call()
            self._say(OPEN)
            self._again(self._content)

    def _again(self, read: Callable[[str], None]) -> None:
        """What is held was something else: read it so."""
        text, self._held, self._read = self._held, "", read
        for character in text:
            self._read(character)

    def _begin(self) -> None:
        self._held, self._apart, self._read = "", True, self._inside
        self._call = XmlCall(self._index, self._tools) if self._calls == "xml" else JsonCall(self._index)

    def _inside(self, character: str) -> None:
        assert self._call is not None
        self._raw.append(character)
        try:
            self._tell(self._call.push(character))
        except ValueError as error:
            self._break(str(error))
            return
        if self._call.ended:
            self._read = self._closing

    def _tell(self, events: list[Event]) -> None:
        """All but the last of the arguments: cut or malformed, a call's are never whole."""
        for event in events:
            if not isinstance(event, CallArguments):
                self._events.append(event)
                continue
            text = self._last + event.text
            self._last = text[-1:]
            if len(text) > 1:
                self._events.append(CallArguments(event.index, text[:-1]))

    def _closing(self, character: str) -> None:
        self._raw.append(character)
        self._held = (self._held + character).lstrip(BLANK)
        if self._held == CLOSE:
            self._events += [CallArguments(self._index, self._last), CallEnded(self._index)]
            self._after_call()
        elif not CLOSE.startswith(self._held):
            self._break("something follows it that is not its closing tag")

    def _break(self, why: str) -> None:
        self._why, self._held, self._read = why, "", self._broken
        self._end_broken()

    def _broken(self, character: str) -> None:
        self._raw.append(character)
        self._end_broken()

    def _end_broken(self) -> None:
        if "".join(self._raw[-len(CLOSE) :]) == CLOSE:
            self._malformed("".join(self._raw), self._why)
            self._after_call()

    def _malformed(self, text: str, why: str) -> None:
        began, self._apart = self._call is not None and self._call.began, True
        self._events.append(Malformed(self._index if began else None, text, why))

    def _after_call(self) -> None:
        assert self._call is not None
        self._index += self._call.began
        self._call, self._raw, self._held, self._why, self._last = None, [], "", UNFINISHED, ""
        self._read, self._until = self._content, self._until_call()

    def _think(self, text: str) -> None:
        text = self._blanks + text
        body = (text if self._thinking else text.lstrip(BLANK)).rstrip(BLANK)
        if body:
            self._blanks, self._thinking = text[len(text.rstrip(BLANK)) :], True
            self._events.append(Thought(body))
        else:
            self._blanks = text

    def _say(self, text: str) -> None:
        body = (self._blanks + text).rstrip(BLANK)
        self._blanks = (self._blanks + text)[len(body) :]
        if not body:
            return
        if self._apart and not self._said:
            body = body.lstrip(BLANK)
        self._said, self._apart = True, False
        self._events.append(Content(body))


def _merged(events: Sequence[Event]) -> list[Event]:
    """Events with neighbours of a kind as one."""
    merged: list[Event] = []
    for event in events:
        before = merged[-1] if merged else None
        if isinstance(event, CallArguments) and isinstance(before, CallArguments):  # two calls have an end between
            merged[-1] = CallArguments(event.index, before.text + event.text)
        elif isinstance(event, Content) and isinstance(before, Content):
            merged[-1] = Content(before.text + event.text)
        elif isinstance(event, Thought) and isinstance(before, Thought):
            merged[-1] = Thought(before.text + event.text)
        else:
            merged.append(event)
    return merged
