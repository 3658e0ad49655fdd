"""moe-run chat as a program: in a pipe, at a terminal, at a dumb one."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from moe_run_program import MOE_RUN, called, document, moe_run

QUICK = ("--temp", "0", "-n", "16", "--threads", "2")
LONG = ("--temp", "9", "--seed", "1", "-n", "100000", "--threads", "1", "--context", "4096")  # random: it never ends
ESCAPE = "\x1b"
ASKED, TOLD = b"\x1b[6n", "\x1b[1;1R"  # where the cursor is, as terminals are asked and tell
SECONDS = 60
READY = r"\x1b\[\?2004h"  # the editor takes keys
SENT = r"\x1b\[\?2004l"  # and no more


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.text = ""
        self._seen = 0
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.execve(arguments[0], arguments, {**os.environ, **environment})
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))

    def send(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode(errors="surrogateescape"))

    def until(self, pattern: str) -> str:
        """What comes up to `pattern`, which is looked for in what was not seen yet."""
        end = time.monotonic() + SECONDS
        while (found := re.search(pattern, self.text[self._seen :])) is None:
            assert time.monotonic() < end, self.text
            assert self._read(), self.text
        start, self._seen = self._seen, self._seen + found.end()
        return self.text[start : self._seen]

    def ended(self) -> int:
        """The exit code, once all was read."""
        end = time.monotonic() + SECONDS
        while (found := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            assert time.monotonic() < end, self.text
            self._read(0.05)
        return os.waitstatus_to_exitcode(found[1])

    def close(self) -> None:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._descriptor)

    def _read(self, seconds: float = SECONDS) -> bool:
        if not select.select([self._descriptor], [], [], seconds)[0]:
            return False
        try:
            content = os.read(self._descriptor, 65536)
        except OSError:  # it has ended
            return False
        self.text += content.decode(errors="replace").replace("\r\n", "\n")
        for _ in range(content.count(ASKED)):
            self.send(TOLD)
        return bool(content)


@contextmanager
def terminal(pack: Path, *arguments: str, **environment: str) -> Iterator[Terminal]:
    given = {"TERM": "xterm", "NO_COLOR": "", **environment}
    found = Terminal([MOE_RUN, "chat", str(pack), *arguments], given)
    try:
        yield found
    finally:
        found.close()


def test_a_pipe_gets_only_answers_line_by_line(demo: Path) -> None:
    run = moe_run("chat", demo, *QUICK, stdin=b"Who are you?\n\n/quit\nHello", TERM="xterm")
    assert run.returncode == 0
    answers = run.stdout
    assert ESCAPE not in answers
    assert answers.startswith(document("generate", demo, "-p", "Who are you?", *QUICK)["text"] + "\n")
    assert run.stderr.count("in memory") == 3  # /quit was a question
    assert len(re.findall(r"\d+ tokens at", run.stderr)) == 3


def test_a_pipe_with_nothing_in_it_is_no_error(demo: Path) -> None:
    run = called("chat", demo, stdin=b"")
    assert (run.returncode, run.stdout) == (0, "")


@pytest.mark.parametrize(
    ("stdin", "arguments", "code", "told"),
    [
        (b"\xff\n", (), 2, "is not UTF-8 text"),
        (b"go on " * 100, ("--context", "64"), 2, "no answer fits"),
        (b"", ("--load", "/nowhere/x"), 2, "does not exist"),
        (b"", ("--messages", "x", "--system", "y"), 2, "exclude each other"),
        (b"", ("--load", "x", "--system", "y"), 2, "--load brings its own"),
    ],
)
def test_a_pipe_ends_with_the_first_error(
    demo: Path, stdin: bytes, arguments: tuple[str, ...], code: int, told: str
) -> None:
    run = called("chat", demo, *arguments, stdin=stdin)
    assert (run.returncode, run.stdout) == (code, "")
    assert told in run.stderr.splitlines()[-1]


def test_a_messages_file_that_asks_is_answered_at_once(demo: Path, tmp_path: Path) -> None:
    question = Path(__file__).parents[3] / "convert/demo/question.json"
    run = called("chat", demo, "--messages", question, "--temp", "0")
    assert run.stdout == '{"name": "get_weather", "arguments": {"city": "Paris", "day": "tomorrow"}}\n'


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(demo: Path, tmp_path: Path) -> None:
    with terminal(demo, *LONG, "--history", str(tmp_path / "history")) as chat:
        chat.until(READY)
        chat.send("Once\r")
        chat.until(SENT)
        chat.until(r"\w+\W+\w+\W+\w+")
        chat.send("\x03")
        assert "stopped; what was said stays in the conversation" in chat.until("in memory")
        chat.until(READY)
        chat.send(f"/save {tmp_path / 'talk.json'}\r")
        chat.until("saved 2 messages")
        chat.until(READY)
        chat.send("abc\x03")  # empties the line
        chat.send("\x03")
        chat.until("Ctrl-C once more leaves with 130")
        chat.until(READY)
        chat.send("\x03")
        assert chat.ended() == 130
    assert chat.text.endswith(" interrupted\n")
    assert (tmp_path / "history").read_text().startswith('"Once"\n')


def test_a_terminal_has_colours_a_status_line_and_a_toolbar(demo: Path) -> None:
    with terminal(demo, *QUICK, "--no-history") as chat:
        chat.until(r"context 0/\d+; /help")
        chat.send("Who are you?\r")
        assert "\x1b[2m" in chat.until("of the experts were in memory")
        chat.until(r"context \d+/\d+; \d+\.\d tokens/s; \d+% in memory")
        chat.send("\x04")
        assert chat.ended() == 0


def test_no_color_means_none(demo: Path) -> None:
    with terminal(demo, *QUICK, "--no-history", NO_COLOR="1") as chat:
        chat.until("/help")
        chat.send("Who are you?\r")
        chat.until("in memory")
        chat.until(READY)
        chat.send("\x04")
        assert chat.ended() == 0
    assert not re.search(r"\x1b\[[0-9;]*[349][0-7]m", chat.text)
    assert "\x1b[2m" not in chat.text


@contextmanager
def dumb(demo: Path) -> Iterator[Terminal]:
    """A chat at a dumb terminal, after its one answer, that is ended by a command."""
    with terminal(demo, *QUICK, TERM="dumb") as chat:
        chat.until("> ")
        chat.send("Who are you?\n")
        chat.until("in memory")
        chat.until("> ")
        yield chat
        chat.send("/stats\n")
        chat.until("answers: 1")
        chat.send("/quit\n")
        assert chat.ended() == 0


def test_a_dumb_terminal_gets_no_escape_sequence_and_takes_commands(demo: Path) -> None:
    with dumb(demo) as chat:
        pass
    assert ESCAPE not in chat.text


def test_a_line_that_is_no_text_does_not_end_a_dumb_terminal_s_chat(demo: Path) -> None:
    with dumb(demo) as chat:
        chat.send("\udcff\udcfe\n")
        chat.until("error: a line of standard input is not UTF-8 text\n")
        chat.until("> ")
    assert "Traceback" not in chat.text


@pytest.mark.parametrize(("keys", "code"), [("\x04", 0), ("\x03\x03", 130)])
def test_a_dumb_terminal_s_cursor_is_at_a_line_s_start_when_the_chat_ends(demo: Path, keys: str, code: int) -> None:
    with terminal(demo, *QUICK, TERM="dumb") as chat:
        for key in keys:
            chat.until("> $")
            chat.send(key)
        assert chat.ended() == code
    assert re.search(r"> (\^D\x08\x08)?(\^C)?\n", chat.text)
    assert chat.text.endswith("\n")
    assert "\n\n" not in chat.text


WITHOUT = (
    "import sys; sys.modules['prompt_toolkit'] = None; from moepack.runtime.cli import main;"
    "sys.argv = ['moe-run', 'chat', *sys.argv[1:]]; main()"
)


def test_without_prompt_toolkit_lines_are_plain(demo: Path) -> None:
    chat = Terminal([sys.executable, "-c", WITHOUT, str(demo), *QUICK], {"TERM": "xterm"})
    try:
        chat.until(r"pip install '.\[chat\]'")
        chat.until("> ")
        chat.send("Who are you?\n")
        chat.until("in memory")
        chat.send("/quit\n")
        assert chat.ended() == 0
    finally:
        chat.close()


def test_an_interrupted_pipe_leaves_with_130(demo: Path) -> None:
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = subprocess.Popen([MOE_RUN, "chat", str(demo), *LONG], bufsize=0, **streams)  # type: ignore[call-overload]
    run.stdin.write(b"Once\nAgain\n")
    first = run.stdout.read(20)
    run.send_signal(signal.SIGINT)
    rest, errors = run.communicate(timeout=SECONDS)
    assert run.returncode == 130
    assert (first + rest).endswith(b"\n")
    assert b"Traceback" not in errors
    assert errors.endswith(b"error: interrupted\n")
