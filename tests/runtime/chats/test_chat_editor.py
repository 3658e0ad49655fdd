"""Line editing through prompt_toolkit's own pipe: keys in, lines out; and the history that is kept of them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chats.chatting import CALL, Script, chatted, with_tools
from prompt_toolkit.application import create_app_session
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from moepack.runtime.chat import editor, history
from moepack.runtime.chat.editor import Editor
from moepack.runtime.chat.history import History, default_path

ENTER, NEW_LINE, ALT_ENTER, CTRL_C, CTRL_D, UP = "\r", "\n", "\x1b\r", "\x03", "\x04", "\x1b[A"
TAKES = {"save": "FILE", "stats": "", "system": "[TEXT]", "tools": "[FILE|off]"}


@contextmanager
def editing(past: History | None = None) -> Iterator[tuple[Editor, PipeInput]]:
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        yield Editor(past or History(None), TAKES, lambda: "status"), keys


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("hello" + ENTER, "hello"),
        ("a" + NEW_LINE + "b" + ALT_ENTER + "c" + ENTER, "a\nb\nc"),
        ("\x1b[200~def f():\r\n    return 1\n\x1b[201~" + ENTER, "def f():\n    return 1\n"),
        ("nonsense" + CTRL_C + "sense" + ENTER, "sense"),
        ("helo\x1b[Dl" + ENTER, "hello"),
        ("é🙂 你好" + ENTER, "é🙂 你好"),
    ],
)
def test_what_keys_make(keys: str, line: str) -> None:
    with editing() as (typed, pipe):
        pipe.send_text(keys)
        assert typed.read("> ") == line


@pytest.mark.parametrize(("key", "error"), [(CTRL_D, EOFError), (CTRL_C, KeyboardInterrupt)])
def test_ctrl_d_and_ctrl_c_at_an_empty_line(key: str, error: type[BaseException]) -> None:
    with editing() as (typed, pipe):
        pipe.send_text(key)
        with pytest.raises(error):
            typed.read("> ")


def test_commands_and_files_are_completed(tmp_path: Path) -> None:
    (tmp_path / "talk.json").touch()
    completer = editor._Commands(TAKES)

    def found(text: str) -> list[str]:
        return [each.text for each in completer.get_completions(Document(text), editor.CompleteEvent())]

    assert found("/s") == ["/save", "/stats", "/system"]
    assert found("s") == []
    assert found(f"/save {tmp_path}/ta") == ["lk.json"]
    assert found(f"/tools {tmp_path}/ta") == ["lk.json"]
    assert found(f"/system {tmp_path}/ta") == []


def test_lines_come_back_in_the_next_run_and_results_do_not(tmp_path: Path) -> None:
    file = tmp_path / "state" / "history"
    past = History(file)
    with editing(past) as (typed, pipe):
        pipe.send_text("first" + ENTER + "two\nlines" + ENTER)
        assert [typed.read("> "), typed.read("> ")] == ["first", "two\nlines"]
        pipe.send_text("a secret" + ENTER)
        assert typed.read("f = ", kept=False) == "a secret"
    past.close()
    assert [json.loads(line) for line in file.read_text().splitlines()] == ["first", "two\nlines"]
    assert file.stat().st_mode & 0o777 == 0o600
    with editing(History(file)) as (typed, pipe):
        pipe.send_text(UP + UP + UP + ENTER)
        assert typed.read("> ") == "first"


def test_a_damaged_history_loses_its_damaged_lines_only(tmp_path: Path) -> None:
    file = tmp_path / "history"
    file.write_bytes(b'"one"\n\xff\n{"a": 1}\n[[[[\n"two"\n')
    past = History(file)
    assert past.lines == ["one", "two"]
    past.add("three")
    assert History(file).lines == ["one", "two", "three"]


def test_a_long_history_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_LINES", 3)
    file = tmp_path / "history"
    file.write_text("".join(f'"{index}"\n' for index in range(7)))
    assert History(file).lines == ["4", "5", "6"]
    assert file.read_text() == '"4"\n"5"\n"6"\n'
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_history_of_long_lines_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "history"
    long = "x" * 60_000
    file.write_text("".join(f'"{index} {long}"\n' for index in range(140)))
    assert file.stat().st_size > 2 * history.MOST_BYTES
    past = History(file)
    assert history.MOST_BYTES - 2 * len(long) < file.stat().st_size <= history.MOST_BYTES
    assert [line.split()[0] for line in past.lines] == [str(index) for index in range(140 - len(past.lines), 140)]
    past.add("one more")
    past.close()
    assert History(file).lines == past.lines


def test_another_file_is_never_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log"
    content = b'{"a": 1}\n' * history.MOST_BYTES
    file.write_bytes(content)
    History(file).add("x")
    assert "is no history" in capsys.readouterr().err
    assert file.read_bytes() == content


def test_a_link_to_a_history_is_followed_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_LINES", 1)
    (tmp_path / "kept").mkdir()
    file, link = tmp_path / "kept" / "history", tmp_path / "history"
    link.symlink_to(file)
    for text in "abcd":
        past = History(link)
        past.add(text)
        past.close()
    assert file.read_text() == '"c"\n"d"\n'
    assert link.is_symlink()


def test_a_link_that_leads_to_itself_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "history").symlink_to(tmp_path / "history")
    past = History(tmp_path / "history")
    past.add("x")
    assert past.lines == ["x"]
    assert "what you type is not kept" in capsys.readouterr().err


def test_a_history_that_cannot_be_kept_is_said_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    past = History(tmp_path / "file" / "history")
    past.add("x")
    assert past.lines == ["x"]
    assert "what you type is not kept" in capsys.readouterr().err


def test_it_is_where_users_expect_it() -> None:
    assert default_path({"XDG_STATE_HOME": "/x"}) == Path("/x/moepack/chat_history")
    assert default_path({"XDG_STATE_HOME": "relative"}) == Path.home() / ".local/state/moepack/chat_history"
    assert default_path({}) == Path.home() / ".local/state/moepack/chat_history"


def test_a_whole_chat_by_keys(demo: Path) -> None:
    with editing() as (typed, pipe), chatted(demo, keyboard=typed) as chat:
        pipe.send_text("/system Be kind." + ENTER + "Who are" + NEW_LINE + "you?" + ENTER + CTRL_C + "/quit" + ENTER)
        chat.talk.run()
        assert chat.roles == ["system", "user", "assistant"]
        assert chat.talk.conversation.entries[1].content == "Who are\nyou?"
        assert "Ctrl-D or /quit ends" in chat.shown()
        assert chat.talk.status.startswith(f"context {chat.talk.last.context_used}/512; ")


def test_a_result_s_prompt_and_its_keys(demo: Path, scripted: Script) -> None:
    with editing() as (typed, pipe), chatted(demo, keyboard=typed) as chat:
        with_tools(chat)
        scripted(chat.language, CALL, CALL)
        pipe.send_text("Go." + ENTER + "sunny" + CTRL_C + CTRL_C + "Again." + ENTER + CTRL_D + "never" + ENTER)
        chat.talk.run()
        assert chat.roles == ["user", "assistant"] * 2
        assert "the calls stay without results" in chat.shown()
