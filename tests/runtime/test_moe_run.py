"""The real console script on real packs of the model that is shipped with moepack."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from packs import build_with

from moepack.convert.recipe import Recipe
from moepack.convert.shipped import CHECKPOINT, QUESTION
from moepack.layout.reader import Pack
from moepack.manifests.errors import CorruptInputError
from moepack.runtime.cli import main
from moepack.runtime.engine import Engine
from moepack.runtime.language import Language, max_new_tokens

MOE_RUN = str(Path(sys.executable).parent / "moe-run")
TEXT = "What is the weather in Paris tomorrow?"


def moe_run(*arguments: object, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    """The console script, in a process of its own."""
    command = [MOE_RUN, *map(str, arguments)]
    run = subprocess.run(command, input=stdin, capture_output=True, timeout=120, env={**os.environ, **environment})
    assert b"Traceback" not in run.stderr
    return subprocess.CompletedProcess(command, run.returncode, run.stdout.decode(), run.stderr.decode())


def called(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """The same function that the console script calls, in this process: for the many cases where that is enough."""
    command = ["moe-run", *map(str, arguments)]
    streams = [io.TextIOWrapper(io.BytesIO(content), "utf-8") for content in (stdin, b"", b"")]
    code = 0
    with mock.patch.multiple(sys, argv=command, stdin=streams[0], stdout=streams[1], stderr=streams[2]):
        try:
            main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    texts = []
    for stream in streams[1:]:
        stream.seek(0)
        texts.append(stream.read())
    return subprocess.CompletedProcess(command, code, *texts)


def document(*arguments: object) -> dict[str, Any]:
    """What a command prints with --json."""
    run = called(*arguments, "--json")
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def refusal(code: int, *arguments: object, stdin: bytes = b"") -> str:
    """The one sentence on stderr of a command that must leave with `code` and print nothing.

    Before it, only the memory budget may have been stated.
    """
    run = called("generate", *arguments, stdin=stdin)
    assert (run.returncode, run.stdout) == (code, ""), run.stderr
    *notes, sentence = run.stderr.splitlines()
    assert all(note.startswith("memory: at most") for note in notes)
    assert sentence.startswith("error: ")
    return sentence


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("packs") / "pack", CHECKPOINT)


def built(target: Path, checkpoint: Path) -> Path:
    build_with(checkpoint, target, Recipe())  # as moe-pack demo does
    return target


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """Builds a pack of the shipped checkpoint with files replaced (text), merged into (dict) or removed (None)."""

    def make(**files: str | dict[str, Any] | None) -> Path:
        checkpoint = tmp_path / "checkpoint"
        shutil.copytree(CHECKPOINT, checkpoint)
        for key, value in files.items():
            file = checkpoint / key.replace("__", ".")
            if isinstance(value, dict):
                file.write_text(json.dumps({**json.loads(file.read_text()), **value}))
            elif value is None:
                file.unlink(missing_ok=True)
            else:
                file.write_text(value)
        return built(tmp_path / "pack", checkpoint)

    return make


@pytest.mark.parametrize("arithmetic", [(), ("--exact",)], ids=["rounded", "exact"])
def test_the_shipped_model_answers_the_shipped_question_with_a_tool_call(
    pack: Path, arithmetic: tuple[str, ...]
) -> None:
    run = moe_run("generate", pack, "--messages", QUESTION, "--temp", 0, *arithmetic)
    assert run.returncode == 0
    call = re.search(r"\{.*\}", run.stdout, re.DOTALL)
    assert call is not None
    assert json.loads(call[0]) == {"name": "get_weather", "arguments": {"city": "Paris", "day": "tomorrow"}}
    statistics = r"prompt \d+ tokens at [\d.]+/s; answer \d+ tokens at [\d.]+/s; read [\d.]+ MB; \d+% of the experts"
    assert re.search(statistics + r" were in memory; resident at most [\d.]+ MB", run.stderr)


def test_the_document_agrees_with_the_stream_and_with_the_engine_itself(pack: Path) -> None:
    arguments = ("generate", pack, "-p", TEXT, "--temp", 0, "-n", 20)
    found = document(*arguments)
    assert moe_run(*arguments).stdout == found["text"].removesuffix("\n") + "\n"
    with Pack.open(pack) as opened:
        language = Language.of(opened)
    assert language.template is not None
    prompt = language.template.render([{"role": "user", "content": TEXT}])
    tokens = language.tokenizer.encode(prompt, add_special_tokens=False)
    assert found["prompt_tokens"] == len(tokens)
    assert found["tokens"] == greedy(pack, tokens, len(found["tokens"]))
    assert found["text"] == language.tokenizer.decode(found["tokens"])


def greedy(pack: Path, tokens: list[int], count: int) -> list[int]:
    answer: list[int] = []
    with Engine.open(pack) as engine:
        session = engine.new_session()
        while len(answer) < count:
            answer.append(int(session.extend(answer[-1:] or tokens).argmax()))
    return answer


def test_the_document_says_how_the_answer_came_about(pack: Path) -> None:
    found = document(
        "generate", pack, "--raw", "-p", "def", "-n", 5, "-K", 2, "--slots", 9, "--chunk", 4, "--threads", 1
    )
    assert (found["finish_reason"], found["generated_tokens"], len(found["tokens"])) == ("length", 5, 5)
    assert (found["experts_per_token"], found["model_experts_per_token"]) == (2, 4)
    assert (found["slots"], found["chunk"], found["threads"], found["digests_checked"]) == (9, 4, 1, True)
    assert found["records_read"] > 0
    assert found["bytes_read"] % found["records_read"] == 0
    assert 0 <= found["hit_rate"] <= 1
    assert found["sampling"]["greedy"]
    assert found["prompt_tokens_per_second"] > 0
    assert found["decode_tokens_per_second"] > 0
    assert found["peak_resident_bytes"] > 10**7
    assert set(found["planned_bytes"]) >= {"trunk", "experts", "state"}


def test_fewer_experts_are_said_aloud_and_the_models_own_number_is_not(pack: Path) -> None:
    note = "2 of 4 experts per token: not the model's own K"
    assert note in called("generate", pack, "-p", "hi", "-n", 1, "-K", 2).stderr
    assert "own K" not in called("generate", pack, "-p", "hi", "-n", 1, "-K", 4).stderr


def test_digests_that_are_not_checked_are_said_aloud_and_in_every_document(pack: Path) -> None:
    workload = ("--prompt-tokens", 2, "--decode-tokens", 1, "--repetitions", 1)
    for arguments in (("generate", pack, "-p", "hi", "-n", 1), ("bench", pack, *workload)):
        run = called(*arguments, "--no-check-digests", "--json")
        assert "digests are not checked" in run.stderr
        assert json.loads(run.stdout)["digests_checked"] is False
        checked = called(*arguments, "--json")
        assert "digests" not in checked.stderr
        assert json.loads(checked.stdout)["digests_checked"] is True


def test_how_it_runs_does_not_change_what_it_says(pack: Path) -> None:
    arguments = ("generate", pack, "-p", TEXT, "--temp", 0.9, "--seed", 7, "-n", 24)
    plain = document(*arguments)
    tight = document(*arguments, "--slots", 1, "--chunk", 3, "--threads", 1, "--no-check-digests")
    assert (plain["tokens"], plain["text"]) == (tight["tokens"], tight["text"])
    assert tight["hit_rate"] < plain["hit_rate"]


def test_a_seed_repeats_an_answer_and_a_random_one_is_reported(pack: Path) -> None:
    arguments = ("generate", pack, "--raw", "-p", "The", "--temp", 1.5, "-n", 24)
    first = document(*arguments)
    again = document(*arguments, "--seed", first["sampling"]["seed"])
    other = document(*arguments, "--seed", first["sampling"]["seed"] + 1)
    assert first["tokens"] == again["tokens"] != other["tokens"]


def test_the_packs_sampling_holds_until_a_flag_says_otherwise(changed: Callable[..., Path]) -> None:
    wanted = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}
    pack = changed(generation_config__json=wanted)
    run = called("generate", pack, "-p", "hi", "-n", 1, "--json")
    sampling = json.loads(run.stdout)["sampling"]
    assert [sampling[name] for name in ("temperature", "top_k", "top_p", "min_p")] == [0.6, 20, 0.95, 0.0]
    assert "repetition_penalty, which is not applied" in run.stderr
    flags = ("--temp", 0.5, "--top-k", 3, "--top-p", 0.5, "--min-p", 0.1, "--seed", 4)
    sampling = document("generate", pack, "-p", "hi", "-n", 1, *flags)["sampling"]
    assert sampling == {"greedy": False, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 4}
    assert document("generate", pack, "-p", "hi", "-n", 1, "--temp", 0)["sampling"]["greedy"]


def test_flags_that_a_greedy_choice_ignores_are_pointed_out(pack: Path) -> None:
    run = called("generate", pack, "-p", "hi", "-n", 1, "--top-p", 0.9, "--seed", 1)
    assert "no effect without a temperature above 0: top_p, seed" in run.stderr


def test_every_way_to_give_a_prompt_gives_the_same_one(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(TEXT + "\n")
    (tmp_path / "chat.json").write_text(json.dumps({"messages": [{"role": "user", "content": TEXT}]}))
    common = ("generate", pack, "-n", 8, "--temp", 0)
    expected = called(*common, "--prompt", TEXT).stdout
    assert moe_run(*common, "-p", "-", stdin=TEXT.encode() + b"\r\n").stdout == expected
    assert called(*common, "--prompt-file", tmp_path / "prompt.txt").stdout == expected
    assert called(*common, "--messages", tmp_path / "chat.json").stdout == expected
    assert document(*common, "--raw", "-p", TEXT)["prompt_tokens"] < document(*common, "-p", TEXT)["prompt_tokens"]


def test_tools_and_the_system_message_reach_the_template(pack: Path, tmp_path: Path) -> None:
    question = json.loads(QUESTION.read_text())
    (tmp_path / "tools.json").write_text(json.dumps(question["tools"]))
    whole = document("generate", pack, "--messages", QUESTION, "-n", 4)
    parts = document("generate", pack, "-p", TEXT, "--tools", tmp_path / "tools.json", "-n", 4)
    assert (parts["prompt_tokens"], parts["tokens"]) == (whole["prompt_tokens"], whole["tokens"])
    system = document("generate", pack, "-p", TEXT, "--system", "Be brief.", "-n", 4)
    assert system["prompt_tokens"] > document("generate", pack, "-p", TEXT, "-n", 4)["prompt_tokens"]


def test_a_stop_string_ends_the_answer_before_it(pack: Path) -> None:
    whole = document("generate", pack, "--messages", QUESTION, "--temp", 0)
    assert whole["finish_reason"] == "stop"
    stop = whole["text"][20:26]
    found = document("generate", pack, "--messages", QUESTION, "--temp", 0, "--stop", "never said", "--stop", stop)
    assert (found["finish_reason"], found["stop"]) == ("stop", stop)
    assert found["text"] == whole["text"][: whole["text"].index(stop)]


def test_the_context_ends_an_answer(pack: Path) -> None:
    found = document("generate", pack, "--raw", "-p", "abc", "--context", 20, "-n", 1000)
    assert found["prompt_tokens"] + found["generated_tokens"] == 20
    assert (found["finish_reason"], found["context"]) == ("length", 20)


def test_text_is_printed_while_more_is_being_made_and_an_interrupt_keeps_it(pack: Path) -> None:
    run = started(pack)
    assert run.stdout is not None
    first = run.stdout.read(5)
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    rest, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert (first + rest).endswith(b"\n")
    assert b"Traceback" not in errors
    assert re.search(rb"answer \d+ tokens", errors)


def test_an_interrupted_document_is_still_one(pack: Path) -> None:
    run = started(pack, "--json", "--prompt-file", "/dev/stdin", prompt=())
    assert run.stdin is not None
    assert run.stderr is not None
    run.stdin.write(b"Once")
    run.stdin.close()
    assert b"own K" in run.stderr.readline()  # the engine is open; the answer begins
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(0.5)
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    assert run.stdout is not None
    assert json.loads(run.stdout.read())["finish_reason"] == "interrupted"
    run.stdout.close()
    run.stderr.close()


def started(pack: Path, *arguments: str, prompt: tuple[str, ...] = ("-p", "Once")) -> subprocess.Popen[bytes]:
    """A run that would take long: greedy, it never leaves its repetition; and one slot makes every token slow."""
    slow = ("-n", "4000", "--temp", "0", "-K", "3", "--slots", "1", "--threads", "1")
    command = [MOE_RUN, "generate", str(pack), "--raw", *prompt, *slow, *arguments]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, bufsize=0, **streams)  # type: ignore[call-overload, no-any-return]


def test_a_file_truncated_while_it_answers_ends_with_one_sentence_and_its_code(tmp_path: Path) -> None:
    pack = built(tmp_path / "pack", CHECKPOINT)
    layer = pack / "experts" / "layer_01.bin"
    run = started(pack)
    assert run.stdout is not None
    run.stdout.read(5)
    os.truncate(layer, 0)
    _, errors = run.communicate(timeout=60)
    sentence = errors.decode().splitlines()[-1]
    assert run.returncode == 4
    assert re.match(rf"error: {layer}: layer 1, expert \d+ .* ends after 0 bytes; the file was truncated", sentence)
    assert b"Traceback" not in errors


def test_a_reader_that_leaves_is_no_error(pack: Path) -> None:
    run = started(pack)
    assert run.stdout is not None
    run.stdout.read(1)
    run.stdout.close()
    assert run.stderr is not None
    errors = run.stderr.read()
    notes = errors.splitlines()
    assert (run.wait(60), notes[0]) == (0, b"3 of 4 experts per token: not the model's own K")
    assert all(note.startswith(b"memory: at most") for note in notes[1:])
    run.stderr.close()


def test_a_terminal_that_is_not_utf8_gets_what_it_can_show(pack: Path) -> None:
    arguments = ("generate", pack, "--raw", "-p", "naïve 你好 ", "-n", 100, "--temp", 100, "--seed", 3)
    text = document(*arguments)["text"]
    assert not text.isascii()
    run = moe_run(*arguments, PYTHONIOENCODING="ascii:strict", PYTHONUTF8="0")
    assert run.returncode == 0
    assert run.stdout.rstrip("\n") == text.encode("ascii", "replace").decode().rstrip("\n")


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


def flip(file: Path, *places: int) -> None:
    """Change one bit in each of these bytes."""
    content = bytearray(file.read_bytes())
    for place in places:
        content[place] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)


def test_what_is_no_pack_is_one_sentence(tmp_path: Path) -> None:
    assert "is not a pack" in refusal(3, tmp_path / "nothing", "-p", "x")
    assert "manifest.json" in refusal(3, tmp_path, "-p", "x")


def test_bench_measures_cold_and_warm(pack: Path) -> None:
    found = document("bench", pack, "--prompt-tokens", 12, "--decode-tokens", 4, "--repetitions", 2, "--slots", 20)
    rows = [(figure["condition"], figure["phase"], figure["repetitions"]) for figure in found["figures"]]
    assert rows == [(condition, phase, 2) for condition in ("cold", "warm") for phase in ("prompt", "decode")]
    for figure in found["figures"]:
        assert figure["slowest"] <= figure["tokens_per_second"] <= figure["fastest"]
        assert figure["bytes_per_token"] > 0
        assert 0 <= figure["hit_rate"] < 1
        assert 0 < figure["ceiling"]["share"] <= 1.5  # storage and computing vary from one second to the next
        assert figure["ceiling"]["cause"] in ("storage", "compute")
        assert (figure["first_token_seconds"] is None) == (figure["phase"] == "decode")
    assert found["page_cache_dropped"] == hasattr(os, "posix_fadvise")
    assert found["workload"] == {"prompt_tokens": 12, "decode_tokens": 4, "repetitions": 2, "tokens": "random"}
    assert min(found["storage_rates"]) <= found["storage_gigabytes_per_second"] <= max(found["storage_rates"])
    assert (found["experts_per_token"], found["threads"] >= 1) == (4, True)
    assert isinstance(found["instruction_set"], str)


def test_bench_takes_a_text_s_tokens(pack: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return [x, 1, 2]\n" * 20)
    arguments = ("bench", pack, "--prompt-tokens", 12, "--decode-tokens", 4, "--repetitions", 1, "--text", text)
    assert document(*arguments)["workload"]["tokens"] == "text"
    text.write_text("too short")
    run = called(*arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert "a repetition takes 16" in run.stderr


def test_bench_prints_a_table_with_its_conditions(pack: Path) -> None:
    run = moe_run("bench", pack, "--prompt-tokens", 4, "--decode-tokens", 2, "--repetitions", 1, "-K", 3, COLUMNS="80")
    assert run.returncode == 0
    lines = run.stdout.splitlines()
    for label in ("cold prompt", "cold decode", "warm prompt", "warm decode"):
        assert any(re.match(label + r" +\d+\.\d+ ", line) for line in lines)
    assert "3 of 4 experts per token" in run.stdout
    assert "not the model's own K" in run.stderr
    assert "resident at most" in run.stdout


def test_bench_says_what_its_columns_are_and_on_macos_that_nothing_compares(
    pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("bench", pack, "--prompt-tokens", 2, "--decode-tokens", 1, "--repetitions", 1)
    here = called(*arguments).stdout
    for column in (
        "tokens/s:",
        "range:",
        "MB/token:",
        "in memory:",
        "GB/s:",
        "from disk:",
        "of limit:",
        "cold:",
        "warm:",
    ):
        assert column in here
    assert ("Apple" in here) == (sys.platform == "darwin")
    monkeypatch.setattr("moepack.runtime.report.sys", mock.Mock(platform="darwin"))
    assert "nothing on Apple hardware" in called(*arguments).stdout


def test_bench_refuses_what_does_not_fit(pack: Path) -> None:
    run = called("bench", pack, "--prompt-tokens", 5000)
    assert (run.returncode, run.stdout) == (2, "")
    assert "5000 prompt" in run.stderr


def test_help_and_version(pack: Path) -> None:
    assert re.fullmatch(r"moe-run \d+\.\d+\.\d+\n", moe_run("--version").stdout)
    for command in ((), ("generate",), ("bench",), ("doctor",)):
        run = moe_run(*command, "--help", COLUMNS="100")
        assert run.returncode == 0
        assert "130 interrupted" in " ".join(run.stdout.split())
    help_text = moe_run("generate", "-h", COLUMNS="200").stdout
    for option in ("--experts-per-token", "--memory", "--min-p", "--stop", "--seed", "--json", "the pack's, else 512"):
        assert option in help_text
    assert moe_run("generate", pack, "--no-such-option").returncode == 2
