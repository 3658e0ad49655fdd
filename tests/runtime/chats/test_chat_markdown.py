"""What is shown: nothing lost, nothing added but colours, whatever the pieces; and no escape sequence of a model's."""

import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moepack.runtime.answers.events import CallArguments, CallBegan, CallEnded, Content, Malformed, Thinking
from moepack.runtime.chat.markdown import BOLD, CODE, DIM, HEADING, RESET, Styler, visible
from moepack.runtime.chat.screen import Looks, Pipe, Terminal

SEQUENCE = re.compile(r"\x1b\[[0-9;]*m")
MARKUP = st.lists(st.sampled_from(["#", "##", " ", "\n", "*", "**", "`", "```", "a", "b c", "\t", "é🙂"])).map("".join)


def styled(*pieces: str) -> str:
    styler = Styler()
    return "".join(map(styler.push, pieces)) + styler.finish()


@given(MARKUP)
@example("```py\n**a** `b`\n```\n# c **d**\n")
def test_without_colours_it_is_the_text(text: str) -> None:
    assert SEQUENCE.sub("", styled(text)) == text


@given(MARKUP, st.data())
def test_pieces_make_no_difference(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    assert styled(text[:cut], text[cut:]) == styled(text) == styled(*text)


@given(MARKUP)
def test_no_line_leaves_a_style_on(text: str) -> None:
    for line in styled(text).splitlines():
        found = SEQUENCE.findall(line)
        assert not found or found[-1] == RESET


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# Head\nx", f"{HEADING}# Head{RESET}\nx"),
        ("a **b** c", f"a {BOLD}**b**{RESET} c"),
        ("a `b` c", f"a {CODE}`b`{RESET} c"),
        ("`**`", f"{CODE}`**`{RESET}"),
        ("#include\n", "#include\n"),
        ("* item *x*\n", "* item *x*\n"),
        ("```py\n# a\n**b**\n```\n", f"{DIM}```py{RESET}\n# a\n**b**\n{DIM}```{RESET}\n"),
    ],
)
def test_what_is_styled(text: str, shown: str) -> None:
    assert styled(text) == shown


@given(st.text())
def test_no_control_character_reaches_a_terminal(text: str) -> None:
    shown = visible(text)
    assert len(shown) == len(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)


EVENTS = [
    Thinking("hm\x1b]0;x\x07"),
    Content("Let me **see**.\x1b[2J"),
    CallBegan(0, "get\x1bx"),
    CallArguments(0, '{"a": "\x9b1m"}'),
    CallEnded(0),
    Malformed(None, "\x1b[31m", "no"),
]


@pytest.mark.parametrize("colours", [True, False])
@pytest.mark.parametrize("fold", [True, False])
def test_a_terminal_gets_no_sequence_but_ours(colours: bool, fold: bool) -> None:
    out = io.StringIO()
    screen = Terminal(out, Looks(colours, lines=colours), fold=fold)
    screen.show(EVENTS)
    screen.end()
    text = out.getvalue()
    left = SEQUENCE.sub("", text)
    assert "\x1b" not in left
    assert "\x9b" not in left
    assert ("\x1b" in text) == colours
    assert ("hm" in left) == (not fold)
    assert left.endswith("\n")


def test_folded_thinking_is_one_line_that_counts() -> None:
    out = io.StringIO()
    screen = Terminal(out, Looks(colours=False, lines=True), fold=True)
    for text in ("abc", "de"):
        screen.show([Thinking(text)])
    screen.show([Content("So.")])
    screen.end()
    before, line = out.getvalue().split("\n")[0].rsplit("\r", 1)
    assert before == "\rthinking: 3 characters\rthinking: 5 characters"
    assert line == "thought: 5 characters; /think show shows them"
    assert out.getvalue().endswith("\nSo.\n")


def test_a_pipe_gets_the_answer_byte_for_byte_and_calls_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    screen = Pipe(out)
    screen.show([*EVENTS[:2], CallBegan(0, "f"), CallArguments(0, '{"a":1}'), CallEnded(0)])
    screen.show([CallBegan(1, "cut"), CallArguments(1, '{"a'), Malformed(1, "", "cut")])
    screen.end()
    assert out.getvalue() == 'Let me **see**.\x1b[2J\n{"name": "f", "arguments": {"a":1}}\n'
    assert "cut" in capsys.readouterr().err
