"""Turns of a chat: what each computes, what it says, and what stays when it is stopped or fails."""

import io
import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest
from chats.chatting import CALL, GREEDY, OPTIONS, QUESTION, Chatted, Script, chatted, with_tools
from moe_run_program import document

from moepack.manifests.errors import StorageError, UsageError
from moepack.runtime.answers.events import Event
from moepack.runtime.chat import keyboard
from moepack.runtime.chat.partner import Settings
from moepack.runtime.engine import EngineOptions, Session
from moepack.runtime.sampling import Sampling

FLAGS = ("--threads", "2", "--context", "512", "-n", "24")


def messages(chat: Chatted, folder: Path, name: str = "messages.json") -> Path:
    """The conversation up to the last answer, as generate reads it."""
    chat_ = chat.talk.conversation.chat()
    file = folder / name
    file.write_text(json.dumps({"messages": chat_.messages[:-1], "tools": chat_.tools}))
    return file


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, 0.95, 40, seed=7)])
def test_every_answer_is_what_generate_gives(demo: Path, tmp_path: Path, sampling: Sampling) -> None:
    flags = ["--temp", sampling.temperature, "--top-p", sampling.top_p, "--top-k", sampling.top_k]
    flags += [] if sampling.seed is None else ["--seed", sampling.seed]
    with chatted(demo, Settings(sampling, 24)) as chat:
        chat.talk.conversation.system = "Be kind."
        for question in ("Who are you?", "Write a function.", "And now?"):
            chat.type(question)
            found = document("generate", demo, "--messages", messages(chat, tmp_path), *flags, *FLAGS)
            assert chat.talk.last is not None
            assert list(chat.talk.last.result.tokens) == found["tokens"]
            assert chat.talk.last.prompt == found["prompt_tokens"]


def test_a_turn_computes_only_what_is_new(chat: Chatted) -> None:
    computed, known = 0, 0
    for question in ("Who are you?", "Write a function.", "And now?", "Why?"):
        chat.type(question)
        last = chat.talk.last
        assert last is not None
        new = last.prompt - known + max(0, len(last.result.tokens) - (last.result.finish == "length"))
        assert chat.computed - computed == new
        computed, known = chat.computed, chat.talk.partner.recall.position
    assert computed == known


def test_thinking_that_a_template_drops_costs_no_more_than_the_last_answer(
    thoughtful: Chatted, scripted: Script
) -> None:
    scripted(thoughtful.language, *[f"I wonder about {name}.\n</think>\n\nThat is {name}." for name in "abcd"])
    prompts = []
    for question in ("What is a?", "And b?", "And c?", "And d?"):
        before = thoughtful.computed
        thoughtful.type(question)
        prompt, tokens = thoughtful.talk.last.prompt, len(thoughtful.talk.last.result.tokens)
        prompts.append((prompt, thoughtful.computed - before - tokens))
    assert thoughtful.talk.conversation.entries[-1].reasoning_content == "I wonder about d."
    computed = [new for _, new in prompts]
    assert computed[0] == prompts[0][0]
    for (prompt, new), (earlier, _) in zip(prompts[1:], prompts, strict=False):
        assert new <= prompt - earlier + 5  # <|im_start|>assistant\n<think>\n of the prompt before is no part of it


def test_going_back_gives_the_same_tokens_as_beginning_anew(thinker: Path, tmp_path: Path) -> None:
    with chatted(thinker) as chat:
        for question in ("Who are you?", "Write a function.", "And now?"):
            chat.type(question)
            found = document("generate", thinker, "--messages", messages(chat, tmp_path), "--temp", "0", *FLAGS)
            assert list(chat.talk.last.result.tokens) == found["tokens"]
        assert chat.computed < sum(size for size in (chat.talk.totals.prompt_tokens, chat.talk.totals.tokens))


def stopping(chat: Chatted, monkeypatch: pytest.MonkeyPatch, after: int, times: int = 1) -> None:
    """Ctrl-C, so many times, while the event `after` is shown."""
    show, seen = chat.talk.screen.show, [0]

    def shown(events: Iterable[Event]) -> None:
        show(events)
        seen[0] += 1
        if seen[0] == after:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(chat.talk.screen, "show", shown)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_an_answer_and_what_was_said_stays(
    chat: Chatted, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    chat.type("Who are you?")
    whole = chat.said
    chat.type("/reset")
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        stopping(chat, patched, 3, times)
        assert "stopped; what was said stays" in chat.type("Who are you?")
    assert signal.getsignal(signal.SIGINT) is before
    assert whole.startswith(chat.said)
    assert 0 < len(chat.said) < len(whole)
    computed, position = chat.computed, chat.talk.partner.recall.position
    chat.type("Go on.")
    assert chat.roles == ["user", "assistant"] * 2
    assert chat.talk.partner.recall.sound
    new = chat.talk.last.prompt - position + len(chat.talk.last.result.tokens)
    assert chat.computed - computed <= new + 1  # the last token of the stopped answer had not been computed with


def test_ctrl_c_before_the_first_token_takes_the_question_back(chat: Chatted, monkeypatch: pytest.MonkeyPatch) -> None:
    chat.type("Who are you?")
    with monkeypatch.context() as patched:
        extend = Session.extend

        def interrupted(session: Session, tokens: list[int]) -> object:
            extend(session, tokens[:1])
            os.kill(os.getpid(), signal.SIGINT)
            return extend(session, tokens[1:])

        patched.setattr(Session, "extend", interrupted)
        assert "the question is taken back" in chat.type("And then?")
    assert chat.roles == ["user", "assistant"]
    chat.type("And then?")
    assert chat.roles == ["user", "assistant"] * 2
    known = chat.said
    chat.type("/reset", "Who are you?", "And then?")
    assert chat.said == known


def test_an_error_takes_the_question_back_and_the_chat_goes_on(chat: Chatted, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:

        def fails(session: Session, tokens: list[int]) -> object:
            session.failed = True
            raise StorageError("the disk is gone; put it back")

        patched.setattr(Session, "extend", fails)
        assert "error: the disk is gone; put it back" in chat.type("Who are you?")
    assert chat.roles == []
    assert "error" not in chat.type("Who are you?")
    assert chat.roles == ["user", "assistant"]


def test_a_full_context_is_one_sentence_and_reset_helps(demo: Path) -> None:
    with chatted(demo, Settings(Sampling(), 200), EngineOptions(threads=2, context=64)) as chat:
        chat.type("Who are you?")
        text = chat.type("Go on. " * 30)
        assert "error: prompt is too long" in text
        assert "/reset begins anew" in text
        assert text.count("\n") == 1
        assert chat.roles == ["user", "assistant"]
        assert "error" not in chat.type("/reset", "Hello")
        assert chat.roles[-2:] == ["user", "assistant"]


def test_the_context_may_fill_in_the_middle_of_an_answer(demo: Path) -> None:
    with chatted(demo, Settings(Sampling(), 200), EngineOptions(threads=2, context=48)) as chat:
        assert "the context is full, and the answer was cut" in chat.type("Write a long function. " * 5)
        assert chat.roles == ["user", "assistant"]


def test_an_answer_that_was_cut_is_said(demo: Path) -> None:
    with chatted(demo, Settings(Sampling(), 3)) as chat:
        assert "the answer was cut at 3 tokens" in chat.type("Who are you?")


NO_TEXT = UsageError("a line of standard input is not UTF-8 text")


def test_a_line_that_cannot_be_read_is_told_and_the_chat_goes_on(chat: Chatted, scripted: Script) -> None:
    with_tools(chat)
    scripted(chat.language, "Well.", CALL, "Sunny.")
    text = chat.type("Who are you?", NO_TEXT, "What is the weather?", NO_TEXT, "sunny")
    assert text.count(f"error: {NO_TEXT}\n") == 2
    assert chat.roles == ["user", "assistant", "user", "assistant", "tool", "assistant"]
    assert chat.said == "Sunny."


def test_where_nobody_types_a_line_that_cannot_be_read_ends_the_chat(demo: Path) -> None:
    with chatted(demo, person=False) as chat, pytest.raises(UsageError):
        chat.type(NO_TEXT, "Who are you?")


def test_no_part_of_a_line_that_is_too_long_is_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyboard, "MAX_MESSAGES_BYTES", 8)
    typed = io.BytesIO(b"12345678\n" + b"and more than that\n" + b"shorter\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(typed))
    lines = keyboard.Lines()
    for _ in range(2):
        with pytest.raises(UsageError, match="more than 8 bytes"):
            lines.read("> ")
    assert lines.read("> ") == "shorter"


def test_calls_are_shown_and_results_go_back(chat: Chatted, scripted: Script) -> None:
    other = '<tool_call>\n{"name": "calculate", "arguments": {"expression": "1+1"}}\n</tool_call>'
    with_tools(chat)
    scripted(chat.language, f"Let me see.\n{CALL}\n{other}", "It is sunny.", CALL, "Well.")
    text = chat.type("What is the weather?", "sunny", "")
    assert 'calls get_weather {"city": "Paris"}' in text
    assert "<tool_call>" not in text
    assert chat.talk.keyboard.prompts == ["> ", "get_weather = ", "calculate = ", "> "]  # type: ignore[attr-defined]
    assert chat.roles == ["user", "assistant", "tool", "assistant"]
    result = chat.talk.conversation.entries[2]
    assert (result.content, result.tool_call_id, result.name) == ("sunny", "call_00000000", "get_weather")
    assert "It is sunny." in text
    chat.type("And now?", KeyboardInterrupt(), "Never mind.")
    assert chat.roles[4:] == ["user", "assistant", "user", "assistant"]
    calls = chat.talk.conversation.entries[5].tool_calls
    assert calls is not None
    assert calls[0].id == "call_00000002"


@pytest.mark.parametrize("before", [(), ("sunny",)])
def test_ctrl_c_at_a_result_leaves_all_calls_unanswered(
    chat: Chatted, scripted: Script, before: tuple[str, ...]
) -> None:
    with_tools(chat)
    scripted(chat.language, f"{CALL}\n{CALL}", "Well.")
    text = chat.type("And the weather?", *before, KeyboardInterrupt())
    assert chat.roles == ["user", "assistant"]
    assert chat.talk.totals.answers == 1
    assert text.endswith("no answer is computed; Ctrl-D or /quit ends the chat\n")
    chat.type("Never mind.")
    assert chat.roles == ["user", "assistant"] * 2
    assert chat.said == "Well."


@pytest.mark.parametrize("before", [(), ("sunny",)])
def test_ctrl_d_at_a_result_ends_the_chat(chat: Chatted, scripted: Script, before: tuple[str, ...]) -> None:
    with_tools(chat)
    scripted(chat.language, f"{CALL}\n{CALL}")
    chat.type("And the weather?", *before, EOFError(), "never")
    assert chat.roles == ["user", "assistant"]


def test_ctrl_d_at_the_result_of_a_file_s_question_ends_the_chat(chat: Chatted, scripted: Script) -> None:
    with_tools(chat)
    scripted(chat.language, CALL)
    chat.talk.conversation.ask("And the weather?")
    chat.type(EOFError(), "never")
    assert chat.roles == ["user", "assistant"]


def test_a_call_s_name_cannot_drive_the_terminal(chat: Chatted, scripted: Script) -> None:
    with_tools(chat)
    call = '<tool_call>\n{"name": "a\\u001b[2J\\nb", "arguments": {}}\n</tool_call>'
    scripted(chat.language, call)
    text = chat.type("Call.", "")
    assert "calls a␛[2J" in text
    assert "\x1b" not in text
    assert chat.talk.keyboard.prompts == ["> ", "a␛[2J b = ", "> "]  # type: ignore[attr-defined]


def test_thinking_is_shown_counted_or_not_asked_for(thoughtful: Chatted, scripted: Script) -> None:
    scripted(thoughtful.language, *["I wonder.\n</think>\n\nSo it is."] * 2, "Plainly.")
    assert "[thinking]\nI wonder.\n[answer]\nSo it is.\n" in thoughtful.type("Why?")
    text = thoughtful.type("/think fold", "Why?")
    assert "thought: 9 characters; /think show shows them\nSo it is.\n" in text
    assert "I wonder" not in text
    assert thoughtful.type("/think show") == "thinking: show; the last answer's was:\nI wonder.\n"
    text = thoughtful.type("/think off", "Why?")
    assert thoughtful.talk.conversation.variables == {"enable_thinking": False}
    assert "Plainly." in text
    assert "thinking]" not in text
    assert thoughtful.type("/think show") == "thinking: show\n"  # the last answer had none
    assert thoughtful.talk.conversation.variables == {"enable_thinking": True}


def test_thinking_that_is_shown_later_cannot_drive_the_terminal(thoughtful: Chatted, scripted: Script) -> None:
    scripted(thoughtful.language, "Sun\x1b[2J.\n</think>\n\nSunny.")
    assert "Sun" not in thoughtful.type("/think fold", "And the weather?").replace("Sunny", "")
    assert thoughtful.type("/think show").endswith("; the last answer's was:\nSun␛[2J.\n")


def test_ctrl_c_twice_at_an_empty_line_leaves(chat: Chatted) -> None:
    with pytest.raises(KeyboardInterrupt):
        chat.type(KeyboardInterrupt(), KeyboardInterrupt())
    assert "Ctrl-D or /quit ends" in chat.shown()
    chat.type(KeyboardInterrupt(), "/help", KeyboardInterrupt())


def test_commands_say_what_they_did(chat: Chatted, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps(json.loads(QUESTION.read_text())["tools"]))
    assert "system: none" in chat.type("/system")
    assert "system: Be kind." in chat.type("/system Be kind.")
    assert chat.type("/system\n") == "system: Be kind.\n"
    assert chat.type("/system off") == "system: none\n"
    assert chat.roles == []
    assert chat.type("/system\nBe\nkind.\n") == "system: Be\nkind.\n"
    assert "tools: send_message, get_weather, calculate" in chat.type(f"/tools {tools}")
    chat.type("Hello")
    text = chat.type("/stats")
    assert f"context: {chat.talk.partner.recall.position} of 512 tokens" in text
    assert f"of which {chat.talk.totals.computed} were computed" in text
    chat.type("/reset")
    assert chat.roles == ["system"]
    assert "tools: none" in chat.type("/tools off")
    assert "/save FILE" in chat.type("/help")
    assert chat.roles == ["system"]
    assert chat.type("/quit", "never") == ""
    assert chat.roles == ["system"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/", "there is no /; /help lists"),
        ("/nonsense\nYou", "there is no /nonsense; /help"),
        ("/nonsense", "there is no /nonsense; /help lists what there is"),
        ("/save", "/save takes FILE"),
        ("/load /nowhere/x.json", "is missing"),
        ("/tools /nowhere/x.json", "cannot be read"),
        ("/think maybe", "/think takes show, fold or off"),
        ("/think off", "knows no thinking"),
        ("/save /nowhere/x.json", "is no directory"),
        ("/save ~nobody-of-this-name/x", "names a home that is not known"),
        ("/save a\0b", "is not valid UTF-8"),
        ("/system \udcff", "is not valid UTF-8"),
        (f"/save {'x' * 300}", "File name too long"),
        (f"/load {'x' * 300}", "error: "),
    ],
)
def test_a_wrong_command_is_one_sentence_and_changes_nothing(chat: Chatted, line: str, told: str) -> None:
    text = chat.type(line)
    assert text.startswith("error: ")
    assert told in text
    assert text.count("\n") == 1
    assert chat.roles == []


def test_a_slash_after_a_blank_is_a_text(chat: Chatted) -> None:
    chat.type(" /etc is full")
    assert chat.talk.conversation.entries[0].content == " /etc is full"


def test_there_are_at_most_two_places_to_go_back_to(chat: Chatted) -> None:
    chat.type(*["Hello"] * 5)
    assert len(chat.talk.partner.recall._places) == 2


assert (GREEDY.max_tokens, OPTIONS.context) == (24, 512)  # as FLAGS say
