"""JSON, character by character: what may come next, and the first character that may not; and all at once."""

import json
import re
from typing import Any

MAX_DEPTH = 64
BLANK = " \t\n\r"
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
HALF = "its JSON has an escape of half a character"
LITERALS = ("true", "false", "null")
_CLOSES = {"{": "}", "[": "]"}


def loads(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for what RFC 8259 does not allow, such as NaN."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def is_unicode(value: Any) -> bool:
    """Whether a JSON value has no text with half a character in it, which no UTF-8 can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


class Scanner:
    """Takes one JSON value's characters. `expects` names what comes next, `depth` how many brackets are open.

    Outside of strings `expects` is one of value, item, key, member, colon, comma and end; "end": the value is complete.
    """

    def __init__(self) -> None:
        self.expects = "value"
        self._open: list[str] = []
        self._word = ""  # the number or literal under way
        self._hexadecimal = ""  # the digits of a \u escape so far
        self._half = False  # the last escape was the first half of a character
        self._key = False

    @property
    def depth(self) -> int:
        """How many objects and lists are open."""
        return len(self._open)

    def feed(self, character: str) -> None:
        """Raises ValueError, with a reason, for a character that no JSON value has there."""
        if self.expects == "word":
            if character not in BLANK + ",]}":
                self._word += character
                return
            self._end_word()
        if self.expects in ("string", "escape", "hex"):
            self._in_string(character)
        elif character not in BLANK:
            self._structure(character)

    def _structure(self, character: str) -> None:
        expects = self.expects
        if character == '"' and expects in ("key", "member", "value", "item"):
            self._key, self.expects = expects in ("key", "member"), "string"
        elif expects in ("value", "item") and character in _CLOSES:
            self._nest(character)
        elif expects == "colon" and character == ":":
            self.expects = "value"
        elif expects == "comma" and character == ",":
            self.expects = "key" if self._open[-1] == "{" else "value"
        elif expects in ("comma", "member", "item") and character == _CLOSES[self._open[-1]]:
            self._open.pop()
            self._value_ended()
        elif expects in ("value", "item") and character in "-0123456789tfn":
            self.expects, self._word = "word", character
        else:
            raise ValueError(f"its JSON has {character!r} where there can be none")

    def _nest(self, bracket: str) -> None:
        if self.depth == MAX_DEPTH:
            raise ValueError(f"its JSON is nested deeper than {MAX_DEPTH}")
        self._open.append(bracket)
        self.expects = "member" if bracket == "{" else "item"

    def _in_string(self, character: str) -> None:
        if self.expects == "hex":
            self._hex(character)
        elif self.expects == "escape":
            self._escape(character)
        elif self._half and character != "\\":
            raise ValueError(HALF)
        elif character == "\\":
            self.expects = "escape"
        elif character == '"':
            self._string_ended()
        elif character < " ":
            raise ValueError("its JSON has a control character in a string")

    def _escape(self, character: str) -> None:
        if character == "u":
            self.expects, self._hexadecimal = "hex", ""
        elif self._half:
            raise ValueError(HALF)
        elif character in '"\\/bfnrt':
            self.expects = "string"
        else:
            raise ValueError(f"its JSON has the escape \\{character}, which there is not")

    def _hex(self, character: str) -> None:
        if character not in "0123456789abcdefABCDEF":
            raise ValueError("its JSON has an escape \\u without four hexadecimal digits")
        self._hexadecimal += character
        if len(self._hexadecimal) == 4:
            self._unit(int(self._hexadecimal, 16))

    def _unit(self, code: int) -> None:
        """An escape's UTF-16 unit."""
        if self._half != (0xDC00 <= code < 0xE000):
            raise ValueError(HALF)
        self.expects, self._half = "string", 0xD800 <= code < 0xDC00

    def _string_ended(self) -> None:
        if self._key:
            self.expects = "colon"
        else:
            self._value_ended()

    def _end_word(self) -> None:
        if self._word not in LITERALS and not NUMBER.fullmatch(self._word):
            raise ValueError(f"its JSON has {self._word!r:.40}, which is no value")
        self._value_ended()

    def _value_ended(self) -> None:
        self.expects = "comma" if self._open else "end"


def inside_string(text: str) -> bool:
    """Whether a text begins a JSON value and stops within a string."""
    scanner = Scanner()
    try:
        for character in text:
            scanner.feed(character)
    except ValueError:
        return False
    return scanner.expects in ("string", "escape", "hex")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
