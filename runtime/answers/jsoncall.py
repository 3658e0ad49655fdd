"""A call as one JSON object, {"name": ..., "arguments": {...}}, read as it comes; keys may stand in any order."""

import json

from .events import CallArguments, CallBegan, Event
from .jsontext import BLANK, Scanner, loads


class JsonCall:
    """Reads one call, from after its first brace, until `ended`; `began`: its name was given out."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._scanner = Scanner()
        self._keys: set[str] = set()
        self._key = ""
        self._name: str | None = None
        self._taken: list[str] | None = None  # the key, name or arguments under way
        self._arguments: list[str] = []  # not given out yet
        self.began = self.ended = False
        self._scanner.feed("{")

    def push(self, character: str) -> list[Event]:
        """The events that a character completes. Raises ValueError, with a reason, for what is no call."""
        self._take(character)
        if self._scanner.expects == "end":
            self._check_whole()
            self.ended = True
        return self._news()

    def _take(self, character: str) -> None:
        scanner = self._scanner
        outer, before = scanner.depth == 1, scanner.expects
        scanner.feed(character)
        if outer and before in ("key", "member") and character == '"':
            self._taken = []
        elif outer and before == "value" and character not in BLANK:
            self._begin_value(character)
        if self._taken is not None:
            self._keep(character)

    def _begin_value(self, character: str) -> None:
        wanted = {"name": '"', "arguments": "{"}.get(self._key)
        if wanted not in (None, character):
            raise ValueError("its name is no text" if self._key == "name" else "its arguments are no object")
        if wanted:
            self._taken = []

    def _keep(self, character: str) -> None:
        assert self._taken is not None
        self._taken.append(character)
        if self._key == "arguments":
            self._arguments.append(character)
        if self._scanner.depth != 1 or self._scanner.expects not in ("colon", "comma"):
            return
        text, self._taken = "".join(self._taken), None
        if self._scanner.expects == "colon":
            self._key = self._new_key(text)
        elif self._key == "name":
            self._name, self._key = str(json.loads(text)), ""
        else:
            loads(text)
            self._key = ""

    def _new_key(self, text: str) -> str:
        key = str(json.loads(text))
        if key in self._keys:
            raise ValueError(f"it has {key!r:.40} twice")
        self._keys.add(key)
        return key

    def _news(self) -> list[Event]:
        if self._name is None or not self._arguments:
            return []
        began: list[Event] = [] if self.began else [CallBegan(self._index, self._name)]
        self.began = True
        text, self._arguments = "".join(self._arguments), []
        return [*began, CallArguments(self._index, text)]

    def _check_whole(self) -> None:
        for key in ("name", "arguments"):
            if key not in self._keys:
                raise ValueError(f"it has no {key}")
