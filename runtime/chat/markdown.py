"""Light styling of Markdown as it streams: headings, bold and code get colours, and no character is changed or moved.

Promises that the text without its escape sequences is the text that came, in the same order. Escape sequences of the
model's own, which could do anything to a terminal, become visible characters first.
"""

import re

BOLD, CODE, HEADING, DIM, RESET = "\x1b[1m", "\x1b[36m", "\x1b[1;35m", "\x1b[2m", "\x1b[0m"
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_CONTROLS |= dict.fromkeys([*range(0x80, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)
_UNDECIDED = re.compile(r"#{1,6}|`{1,2}")  # at the start of a line
_HEADING = re.compile(r"#{1,6} ")
_FENCE = "```"


def visible(text: str) -> str:
    """The text with control characters, but for line ends and tabs, as pictures of them."""
    return text.translate(_CONTROLS)


class Styler:
    """Styles one text: `push` its pieces, then `finish`."""

    def __init__(self) -> None:
        self._held = ""  # may be the beginning of some markup
        self._line_start = True
        self._fenced = self._fence_line = False
        self._styles: list[str] = []

    def push(self, text: str) -> str:
        """What can be shown of it by now."""
        return "".join(map(self._character, visible(text)))

    def finish(self) -> str:
        """The rest, and no style left on."""
        rest, self._held = self._held, ""
        return rest + (RESET if self._styles else "")

    def _character(self, character: str) -> str:
        self._held += character
        held = self._held
        if self._line_start and (_HEADING.fullmatch(held) or held == _FENCE):
            return self._opened(held)
        if held == "*" or (self._line_start and _UNDECIDED.fullmatch(held)):
            return ""
        return self._released(held)

    def _opened(self, held: str) -> str:
        """A line that is a heading, or that opens or closes a fence."""
        self._held, self._line_start = "", False
        if held == _FENCE:
            self._fenced, self._fence_line = not self._fenced, True
            return self._on(DIM) + held
        return held if self._fenced else self._on(HEADING) + held

    def _released(self, held: str) -> str:
        """Text that is no beginning of a line's markup."""
        self._held, self._line_start = "", False
        out = []
        while held:
            mark = next((each for each in ("**", "`") if held.startswith(each)), held[0])
            out.append(self._shown(mark))
            held = held[len(mark) :]
        return "".join(out)

    def _shown(self, mark: str) -> str:
        if mark == "\n":
            self._line_start, self._fence_line = True, False
            return self._off() + mark
        if self._fenced or self._fence_line or mark not in ("**", "`"):
            return mark
        style = BOLD if mark == "**" else CODE
        if CODE in self._styles and style != CODE:
            return mark
        if style in self._styles:
            self._styles.remove(style)
            return mark + RESET + "".join(self._styles)
        return self._on(style) + mark

    def _on(self, style: str) -> str:
        self._styles.append(style)
        return style

    def _off(self) -> str:
        found, self._styles = self._styles, []
        return RESET if found else ""
