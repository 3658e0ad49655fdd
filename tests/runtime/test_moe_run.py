"""The real console script on real packs of the model that is shipped with moepack: answers."""

import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from moe_run_program import called, document, moe_run, started

from moepack.convert.shipped import QUESTION
from moepack.layout.reader import Pack
from moepack.runtime.engine import Engine
from moepack.runtime.language import Language

TEXT = "What is the weather in Paris tomorrow?"


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
