"""Tokens of preprocessed MSL, each with the space before it and its place in the .metal file.

Joining `before` and `text` of all tokens gives the text back; whoever drops a token hands its space to the next one,
so that every line stays where it was and the compiler's line numbers hold.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

SPACE = re.compile(r"(?:\s+|^[ \t]*#[^\n]*$)+", re.M)
TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<name>[A-Za-z_]\w*)
      | (?P<number>\.?\d(?:[eEpP][+-]|[\w.])*)
      | (?P<sign>\[\[|::|->|<<=|>>=|<=|>=|==|!=|&&|\|\||\+\+|--|[-+*/%&|^]=|.)""",
    re.X | re.S,
)
MARKER = re.compile(r'#\s*(?:line\s+)?(\d+)\s+"([^"]*)"')
CLOSERS = {"(": ")", "[": "]", "{": "}", "<": ">", "[[": "]"}


@dataclass(frozen=True)
class Place:
    file: str
    line: int


@dataclass(frozen=True)
class Token:
    kind: str  # string, name, number, sign or end
    text: str
    before: str
    place: Place


class MslError(Exception):
    """Something that the translation refuses, and where."""

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.message, self.place = message, place


def tokenize(source: str, file: str) -> list[Token]:
    """The last token has kind `end` and no text: it keeps what space follows the others."""
    found, at, place = [], 0, Place(file, 1)
    while True:
        space = SPACE.match(source, at)
        before = space.group() if space else ""
        place = after(before, place)
        at += len(before)
        match = TOKEN.match(source, at)
        if match is None:
            return [*found, Token("end", "", before, place)]
        found.append(Token(match.lastgroup or "", match.group(), before, place))
        at = match.end()


def after(space: str, place: Place) -> Place:
    """Where one stands after lines of space, in which `# 12 "file"` says what the next line is called."""
    for line in space.splitlines(keepends=True):
        marker = MARKER.match(line.strip())
        if marker:
            place = Place(marker[2], int(marker[1]) - 1)
        if line.endswith("\n"):
            place = Place(place.file, place.line + 1)
    return place


def joined(tokens: Iterable[Token]) -> str:
    return "".join(token.before + token.text for token in tokens)


def text(tokens: Iterable[Token]) -> str:
    """The tokens alone, with single spaces between: for messages, and for code of which lines do not matter."""
    return " ".join(token.text for token in tokens)


class Output:
    """A list of tokens in the making, in which dropped ones leave their space behind."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self._space = ""

    def keep(self, *tokens: Token) -> None:
        for token in tokens:
            self.tokens.append(replace(token, before=self._space + token.before))
            self._space = ""

    def drop(self, *tokens: Token) -> None:
        self._space += "".join(token.before for token in tokens)

    def put(self, code: str, instead_of: Sequence[Token]) -> None:
        """C++ in the place of some tokens, on the line of the first of them."""
        first, *others = instead_of
        self.keep(replace(first, text=code))
        self.drop(*others)


def closing(tokens: Sequence[Token], opening: int) -> int:
    """The index of what closes the bracket at `opening`. `[[` is closed by the second `]`."""
    opener = tokens[opening].text
    closer, depth = CLOSERS[opener], 0
    for i in range(opening, len(tokens)):
        if tokens[i].text == "[[" and closer == "]":
            depth += 2
        elif tokens[i].text == opener:
            depth += 1
        elif tokens[i].text == closer:
            depth -= 1
            if depth == 0:
                return i
    raise MslError(f"this {opener} is never closed", tokens[opening].place)


def split(tokens: Sequence[Token], separator: str = ",") -> list[list[Token]]:
    """The parts between separators that no bracket encloses; none of nothing."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += token.text in ("(", "[", "{", "<", "[[") or -(token.text in (")", "]", "}", ">"))
        depth += token.text == "[["
        if token.text == separator and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts if parts[-1] or len(parts) > 1 else []


def find(tokens: Sequence[Token], word: str, start: int) -> int:
    """The index of the first token of that text from `start` on."""
    return start + sum(1 for _ in takewhile(lambda token: token.text not in (word, ""), tokens[start:]))
