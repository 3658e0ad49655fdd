"""Saved conversations: they go on as if nothing had been, and what is not as it was saved is refused."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chats.chatting import GREEDY, OPTIONS, Chatted, Script, chatted
from moe_run_program import flip

from moepack.layout import atomic
from moepack.layout.tensorfile import TensorFile
from moepack.manifests import digest
from moepack.manifests.errors import StorageError
from moepack.runtime.backends.base import Floats
from moepack.runtime.chat.partner import Settings
from moepack.runtime.engine import Session
from moepack.runtime.sampling import Sampling

QUESTIONS = ("Who are you?", "Write a function.", "And now?")


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> list[Floats]:
    """All that is computed from now on."""
    found: list[Floats] = []
    extend = Session.extend

    def recorded(session: Session, tokens: list[int]) -> Floats:
        found.append(extend(session, tokens).copy())
        return found[-1]

    monkeypatch.setattr(Session, "extend", recorded)
    return found


@pytest.mark.parametrize("settings", [GREEDY, Settings(Sampling(0.9, 0.9, 30, seed=3), 24)])
def test_loaded_equals_uninterrupted_bit_for_bit(
    demo: Path, tmp_path: Path, logits: list[Floats], settings: Settings
) -> None:
    file = tmp_path / "talk.json"
    with chatted(demo, settings) as chat:
        chat.type("/system Be kind.", *QUESTIONS[:2], f"/save {file}")
        logits.clear()
        chat.type(*QUESTIONS[2:])
        expected, entries = list(logits), chat.talk.conversation.entries
    with chatted(demo) as chat:
        text = chat.type(f"/load {file}")
        assert "tokens need not be computed again" in text
        assert chat.talk.partner.settings == settings
        logits.clear()
        before = chat.computed
        assert before == 0
        chat.type(*QUESTIONS[2:])
        assert chat.talk.conversation.entries == entries
        assert len(logits) == len(expected)
        assert all(np.array_equal(one, other) for one, other in zip(logits, expected, strict=True))


def test_a_place_to_go_back_to_is_saved_too(thinker: Path, tmp_path: Path, scripted: Script) -> None:
    file, answer = tmp_path / "talk.json", "Hm.\n</think>\n\nSo."
    with chatted(thinker) as chat:
        scripted(chat.language, answer, answer)
        chat.type("Why?", f"/save {file}")
        before = chat.computed
        chat.type("And?")
        expected = chat.computed - before
    with chatted(thinker) as chat:
        scripted(chat.language, answer)
        chat.type(f"/load {file}", "And?")
        assert chat.computed == expected
        assert chat.talk.last.result.prompt_tokens < chat.talk.last.prompt


def test_it_is_json_in_openais_shape_and_the_users_alone(chat: Chatted, tmp_path: Path, scripted: Script) -> None:
    file = tmp_path / "talk.json"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    chat.talk.conversation.tools = tools
    chat.talk.partner.settings = replace(GREEDY, max_tokens=100)
    scripted(chat.language, '<tool_call>\n{"name": "f", "arguments": {"a": 1.0}}\n</tool_call>', "Done.")
    chat.type("Call f.", "2", f"/save {file}")
    found = json.loads(file.read_text())
    assert found["messages"][1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "call_00000000", "type": "function", "function": {"name": "f", "arguments": '{"a": 1.0}'}}
        ],
    }
    assert found["messages"][2] == {"role": "tool", "content": "2", "tool_call_id": "call_00000000", "name": "f"}
    assert found["tools"] == tools
    assert found["pack"] == chat.talk.pack
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "talk.json": 0o600,
        f"talk.json.{found['state']['tag']}.state": 0o600,
    }


def test_saving_again_leaves_two_files(chat: Chatted, tmp_path: Path) -> None:
    other = tmp_path / "talk.json.backup.state"
    other.write_text("mine")
    for question in QUESTIONS:
        chat.type(question, f"/save {tmp_path / 'talk.json'}")
        assert len(list(tmp_path.iterdir())) == 3
    assert other.read_text() == "mine"


def test_what_is_not_ours_is_not_written_over(chat: Chatted, tmp_path: Path) -> None:
    file = tmp_path / "notes.json"
    file.write_text('{"notes": 1}')
    assert "is no saved conversation; give another name" in chat.type("Hello", f"/save {file}")
    assert file.read_text() == '{"notes": 1}'
    assert list(tmp_path.iterdir()) == [file]


def test_a_save_that_fails_leaves_the_earlier_one(
    chat: Chatted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "talk.json"
    chat.type("Hello", f"/save {file}")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(atomic, "replace", full)
    assert "error: the disk is full" in chat.type("More.", f"/save {file}")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nothing_said_is_saved_without_a_state(chat: Chatted, tmp_path: Path) -> None:
    chat.type("/system Be kind.", f"/save {tmp_path / 'talk.json'}")
    assert json.loads((tmp_path / "talk.json").read_text())["state"] is None
    assert "computed again" in chat.type(f"/load {tmp_path / 'talk.json'}")
    assert chat.talk.conversation.system == "Be kind."


@pytest.fixture(scope="module")
def kept(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a saved conversation."""
    folder = tmp_path_factory.mktemp("kept")
    with chatted(demo) as chat:
        chat.type(*QUESTIONS[:2], f"/save {folder / 'talk.json'}")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def file(kept: dict[str, bytes], tmp_path: Path) -> Path:
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path / "talk.json"


@pytest.fixture(scope="module")
def steady(demo: Path) -> Iterator[Chatted]:
    """A chat of one answer, for what changes nothing."""
    with chatted(demo) as chat:
        chat.type("Hello")
        yield chat


def state_of(file: Path) -> Path:
    return next(file.parent.glob("*.state"))


def test_without_its_state_it_is_computed_again(demo: Path, file: Path) -> None:
    state_of(file).unlink()
    with chatted(demo) as chat:
        assert "it will be computed again" in chat.type(f"/load {file}")
        chat.type(QUESTIONS[2])
        assert chat.talk.last.result.prompt_tokens == chat.talk.last.prompt


def test_another_packs_state_is_not_used(thinker: Path, file: Path) -> None:
    with chatted(thinker) as chat:
        assert "it is another pack's, so it will be computed again" in chat.type(f"/load {file}")
        assert chat.talk.partner.recall.position == 0
        assert chat.roles == ["user", "assistant"] * 2


def test_another_k_does_not_use_it_either(demo: Path, file: Path) -> None:
    with chatted(demo, options=replace(OPTIONS, experts_per_token=2)) as chat:
        assert "no state for this pack and these options" in chat.type(f"/load {file}")


@pytest.mark.parametrize("at", [0, 9, 300, -1])
def test_a_damaged_state_is_refused_and_nothing_changes(steady: Chatted, file: Path, at: int) -> None:
    state = state_of(file)
    flip(state, at % state.stat().st_size)
    said, position = steady.said, steady.talk.partner.recall.position
    text = steady.type(f"/load {file}")
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert (steady.said, steady.talk.partner.recall.position) == (said, position)
    assert steady.talk.partner.recall.sound


def test_a_state_that_does_not_fit_the_context_is_refused(demo: Path, file: Path) -> None:
    with chatted(demo, options=replace(OPTIONS, context=40)) as chat:
        text = chat.type(f"/load {file}")
        assert "fits a context of 40 tokens" in text
        assert chat.roles == []


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def changed(document: dict[str, Any]) -> None:
        *path, last = key.split(".")
        for each in path:
            document = document[int(each) if each.isdigit() else each]
        document[int(last) if last.isdigit() else last] = value

    return changed


HOSTILE = {
    "version": ("moepack_chat", 2),
    "unknown field": ("more", 1),
    "role": ("messages.0.role", "root"),
    "content": ("messages.0.content", ["x"]),
    "message": ("messages.0", 7),
    "messages": ("messages", {}),
    "calls": ("messages.1.tool_calls", [{"id": "1", "function": {"name": "f", "arguments": "[1]"}}]),
    "arguments": ("messages.1.tool_calls", [{"id": "1", "function": {"name": "f", "arguments": "{" * 100000}}]),
    "tools": ("tools", [{"name": "f"}]),
    "temperature": ("sampling.temperature", -1),
    "top_p": ("sampling.top_p", 1e300),
    "seed": ("sampling.seed", -1),
    "max_tokens": ("max_tokens", 0),
    "stop": ("stop", [""]),
    "tag": ("state.tag", "../../../etc/passwd"),
    "digest": ("state.blake3", 3),
    "other digest": ("state.blake3", "00" * 32),
    "variables": ("template_vars", {"messages": []}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_sentence(steady: Chatted, file: Path, name: str) -> None:
    document = json.loads(file.read_text())
    change(*HOSTILE[name])(document)
    file.write_text(json.dumps(document))
    text = steady.type(f"/load {file}")
    assert text.startswith("error: ")
    assert str(file.parent) in text
    assert text.count("\n") == 1
    assert len(text) < 700
    assert steady.roles == ["user", "assistant"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 5000, b"\xff", b'{"a": 1, "a": 2}', b"null", b'{"moepack_chat": NaN}']
)
def test_what_is_no_json_is_refused(steady: Chatted, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    text = steady.type(f"/load {tmp_path / 'x.json'}")
    assert text.startswith("error: ")
    assert text.count("\n") == 1


def test_pipes_and_folders_are_refused_at_once(steady: Chatted, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in steady.type(f"/load {tmp_path / 'pipe'}")
    assert "error: " in steady.type(f"/load {tmp_path}")


@pytest.mark.parametrize(("name", "values"), [("tokens", [10**6]), ("tokens", [-1]), ("ends", [0]), ("ends", [10**6])])
def test_a_state_with_a_right_digest_and_wrong_values_is_refused(
    steady: Chatted, file: Path, name: str, values: list[int]
) -> None:
    state = state_of(file)
    with TensorFile.open(state) as opened:
        entry = opened.entries[name]
    content = bytearray(state.read_bytes())
    content[entry.offset : entry.offset + 4] = np.asarray(values, "<i4").tobytes()
    state.write_bytes(content)
    document = json.loads(file.read_text())
    document["state"]["blake3"] = digest.of_file(state)
    file.write_text(json.dumps(document))
    assert "names tokens or positions that do not exist" in steady.type(f"/load {file}")
    assert steady.talk.partner.recall.sound
