"""What moe-run generate refuses, and where it finds what nobody said: one sentence, one exit code, no text."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from moe_run_program import MOE_RUN, called, document, flip, moe_run, refusal

from moepack.convert.shipped import CHECKPOINT, QUESTION
from moepack.layout.reader import Pack
from moepack.manifests.errors import CorruptInputError
from moepack.runtime.language import max_new_tokens


def test_flags_that_a_greedy_choice_ignores_are_pointed_out(pack: Path) -> None:
    run = called("generate", pack, "-p", "hi", "-n", 1, "--top-p", 0.9, "--seed", 1)
    assert "no effect without a temperature above 0: top_p, seed" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", ""], "the prompt is empty"),
        (["-p", " \n "], "the prompt is empty"),
        (["-p", "-"], "the prompt is empty"),
        (["--raw", "-p", ""], "the prompt is empty"),
        ([], "give one prompt"),
        (["-p", "x", "--prompt-file", "y"], "give one prompt"),
        (["--prompt-file", "/no/such/file"], "/no/such/file cannot be read"),
        (["--messages", "/no/such/file"], "/no/such/file cannot be read"),
        (["--messages", str(QUESTION), "--system", "x"], "--system and --messages exclude each other"),
        (["--messages", str(CHECKPOINT / "config.json")], 'is not {"messages"'),
        (["-p", "x", "--tools", str(QUESTION)], "tools are a JSON list"),
        (["-p", "x", "--raw", "--tools", str(QUESTION)], "--tools is for chats"),
        (["-p", "x", "--template-vars", "[]"], "--template-vars is not a JSON object"),
        (["-p", "x", "--template-vars", '{"messages": []}'], "cannot be named 'messages'"),
        (["-p", "x" * 3000, "--context", "100"], "context of 100"),
        (["-p", "x", "-K", "5"], "5 experts per token"),
        (["-p", "x", "-K", "0"], "0 experts per token"),
        (["-p", "x", "--temp", "-1"], "temperature -1.0"),
        (["-p", "x", "--top-p", "1.5"], "top-p 1.5"),
        (["-p", "x", "--stop", ""], "a stop string is empty"),
        (["-p", "x", "-n", "0"], "max-tokens 0"),
        (["-p", "x", "--memory", "8"], "is not a size"),
        (["-p", "x", "--memory", "1MB"], "too few"),
        (["-p", "x", "--slots", "0"], "0 expert slots"),
        (["-p", "x", "--context", "9999999"], "context of 9999999"),
    ],
)
def test_requests_that_cannot_be_met_are_one_sentence_and_exit_2(
    pack: Path, arguments: list[str], sentence: str
) -> None:
    assert sentence in refusal(2, pack, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "-p", "x" * 3000, "--context", "100"],
        ["generate", "-p", "x", "-n", "0"],
        ["generate", "-p", "x", "--stop", ""],
        ["generate", "-p", "x", "-K", "5"],
        ["bench", "--prompt-tokens", "5000"],
    ],
)
def test_what_cannot_be_met_is_refused_before_the_model_is_read(
    pack: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr("moepack.runtime.weights.load", mock.Mock(side_effect=AssertionError("the trunk was read")))
    command, *options = arguments
    assert called(command, pack, *options).returncode == 2


def test_a_run_opens_its_pack_once(pack: Path) -> None:
    with mock.patch.object(Pack, "open", side_effect=Pack.open) as opened:
        assert called("generate", pack, "-p", "hi", "-n", 1).returncode == 0
    assert opened.call_count == 1


def test_the_longest_answer_is_the_flags_then_the_packs_then_ours(changed: Callable[..., Path]) -> None:
    pack = changed(generation_config__json={"max_new_tokens": 3})
    assert document("generate", pack, "--raw", "-p", "Once", "--temp", 0)["generated_tokens"] == 3
    assert document("generate", pack, "--raw", "-p", "Once", "--temp", 0, "-n", 5)["generated_tokens"] == 5


def test_a_pack_that_does_not_say_gets_512_tokens(changed: Callable[..., Path]) -> None:
    pack = changed(generation_config__json=None)
    found = document("generate", pack, "--raw", "-p", "Once", "-K", 3)
    assert (found["generated_tokens"], found["finish_reason"]) == (512, "length")


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "9", []])
def test_a_longest_answer_that_is_no_number_is_corrupt(value: object) -> None:
    with pytest.raises(CorruptInputError, match="name: max_new_tokens is"):
        max_new_tokens({"max_new_tokens": value}, "name")
    assert max_new_tokens({"max_new_tokens": None}, "name") is None


def test_a_prompt_longer_than_the_context_names_both_numbers(pack: Path) -> None:
    tokens = document("generate", pack, "--raw", "-p", "a b c d e f g h", "-n", 1)["prompt_tokens"]
    assert tokens > 4
    sentence = refusal(2, pack, "--raw", "-p", "a b c d e f g h", "--context", 4)
    assert f"{tokens} tokens" in sentence
    assert "context of 4" in sentence


def test_a_prompt_file_that_is_no_text_is_one_sentence(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in refusal(2, pack, "--prompt-file", tmp_path / "bytes")
    assert "standard input is not UTF-8 text" in refusal(2, pack, "-p", "-", stdin=b"\xff")
    run = subprocess.run([MOE_RUN, "generate", str(pack), "-p", b"\xff"], capture_output=True)
    assert (run.returncode, b"UTF-8" in run.stderr) == (2, True)


def test_a_prompt_that_is_too_much_is_refused_and_never_cut(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moepack.runtime.asked.MAX_MESSAGES_BYTES", 8)
    (tmp_path / "prompt").write_bytes(b"123456789")
    assert "prompt has more than 8 bytes" in refusal(2, pack, "--prompt-file", tmp_path / "prompt")
    assert "standard input has more than 8 bytes" in refusal(2, pack, "-p", "-", stdin=b"123456789")
    assert called("generate", pack, "-p", "-", "-n", 1, stdin=b"12345678").returncode == 0


@pytest.mark.parametrize("command", ["generate", "bench"])
@pytest.mark.parametrize("threads", [-1, 0, 1025, 2000, "many"])
def test_a_number_of_threads_that_no_machine_has_is_refused(pack: Path, command: str, threads: object) -> None:
    run = moe_run(command, pack, "--threads", threads)
    assert (run.returncode, run.stdout) == (2, "")
    assert "--threads" in run.stderr


def test_a_pack_without_a_template_continues_the_text_and_refuses_chats(changed: Callable[..., Path]) -> None:
    pack = changed(chat_template__jinja=None)
    bare = document("generate", pack, "-p", "def main", "-n", 4)
    assert bare["tokens"] == document("generate", pack, "--raw", "-p", "def main", "-n", 4)["tokens"]
    assert "--system needs a chat template" in refusal(2, pack, "-p", "x", "--system", "y")


def test_a_pack_without_a_tokenizer_says_what_is_missing(changed: Callable[..., Path]) -> None:
    assert "has no tokenizer.json" in refusal(2, changed(tokenizer__json=None), "-p", "x")


def test_a_template_that_refuses_or_attacks_ends_the_run(changed: Callable[..., Path]) -> None:
    pack = changed(
        chat_template__jinja="{{ raise_exception('not like this') if messages|length == 1 else ''.__class__ }}"
    )
    assert "refuses these messages: not like this" in refusal(2, pack, "-p", "x")
    assert "tries what a chat template may not" in refusal(3, pack, "-p", "x", "--system", "y")


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "trunk.safetensors"])
def test_damage_is_exit_1_and_no_text(pack: Path, tmp_path: Path, name: str) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(pack, damaged)
    flip(damaged / name, -1)
    refusal(1, damaged, "-p", "hi")


@pytest.mark.parametrize("layer", [0, -1])
def test_one_wrong_byte_in_whichever_expert_a_layer_asks_for_is_exit_1_and_no_text(
    pack: Path, tmp_path: Path, layer: int
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(pack, damaged)
    with Pack.open(pack) as opened:
        layer %= opened.model.num_layers
        records = [opened.address(layer, expert) for expert in range(opened.model.num_experts)]
        file = opened.manifest.layers[layer].file
    flip(damaged / file, *(record.offset + record.size // 2 for record in records))
    assert Path(file).stem in refusal(1, damaged, "-p", "hi")


def test_what_is_no_pack_is_one_sentence(tmp_path: Path) -> None:
    assert "is not a pack" in refusal(2, tmp_path / "nothing", "-p", "x")
    assert "manifest.json" in refusal(3, tmp_path, "-p", "x")
