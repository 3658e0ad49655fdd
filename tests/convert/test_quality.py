"""`moe-pack quality` from the command line: its document, its table, its picture, and what it refuses."""

import builtins
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import ODD, CheckpointMaker, Variant
from packs import build_pack
from ran import Ran

from moepack.runtime.quality import evaluation

pytest.importorskip("jsonschema")
pytest.importorskip("matplotlib")  # of the extra "quality", which every target of the Makefile with tests installs

MoePack = Callable[..., Ran]
TEXT = "\0".join(
    ["the quick brown fox jumps over the lazy dog " * 3, 'again {"and": [1, 2], "again": "\\n"}\n' * 4] * 3
)
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def folder(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    build_pack(make_checkpoint(), folder / "two")
    build_pack(make_checkpoint(), folder / "four", expert_format="affine4-g64")
    (folder / "text").write_text(TEXT)
    (folder / "text.svg").mkdir()
    case = {"messages": [{"role": "user", "content": "hi"}], "tools": [TOOL]}
    cases = [{**case, "expected": {"name": "f", "arguments": {}}}, {**case, "expected": None}]
    (folder / "tools").write_text("".join(json.dumps(case) + "\n" for case in cases))
    bad_cases = {
        "long": {**cases[1], "messages": [{"role": "user", "content": "long " * 5000}]},
        "refused": {**cases[1], "messages": [{"role": "nobody", "content": "hi"}]},
        "schema": {**cases[1], "tools": [{"name": "f", "parameters": {"type": "strnig"}}]},
        "endless": {**cases[1], "tools": [{"name": "f", "parameters": {"$ref": "#"}}]},
        "other": {**cases[0], "expected": {"name": "g", "arguments": {}}},
    }
    for name, bad in bad_cases.items():
        (folder / name).write_text(json.dumps(cases[0]) + "\n" + json.dumps(bad) + "\n")
    return folder


def test_the_document_has_every_figure(moe_pack: MoePack, folder: Path, make_checkpoint: CheckpointMaker) -> None:
    ran = moe_pack(
        *("quality", folder / "two", folder / "four", "--reference", make_checkpoint(), "--json"),
        *("--text", folder / "text", "--tools", folder / "tools", "-n", 4, "-k", 3, "-k", 1, "--layer-tokens", 100),
    )
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    judged = [(Path(pack["pack"]).name, pack["experts_per_token"]) for pack in found["packs"]]
    assert judged == [("two", 3), ("two", 1), ("four", 3), ("four", 1)]
    two, two_k1, four, _ = found["packs"]
    assert found["text"]["documents"] == 6
    assert two["text"]["positions"] == found["text"]["positions"] > 200
    assert 0 < four["text"]["kl"]["mean"] < two["text"]["kl"]["mean"] < two_k1["text"]["kl"]["mean"]
    assert two["kl_to_first_pack"]["mean"] == 1
    ratio = four["text"]["kl"]["mean"] / two["text"]["kl"]["mean"]
    assert four["kl_to_first_pack"]["mean"] == pytest.approx(ratio)
    assert (two["bits_per_expert_weight"], four["bits_per_expert_weight"]) == (2.5, 4.5)
    inspected = json.loads(moe_pack("inspect", folder / "two", "--json").out)
    assert two["recipe"] == inspected["recipe"]
    assert two["total_bytes"] == inspected["total_bytes"] > two["expert_bytes"] + two["trunk_bytes"]
    assert (two["expert_bytes"], two["trunk_bytes"]) == (inspected["experts"]["bytes"], inspected["trunk"]["bytes"])
    assert set(two["structural"]["classes"]) == {
        *("quote", "brace", "bracket", "colon", "comma", "backslash", "newline", "digit")
    }
    assert two["tool_calls"]["parse"]["cases"] == two["tool_calls"]["abstention"]["cases"] == 1
    assert two["tool_calls"]["abstention"]["rate"] == 1
    assert two["tool_calls"]["abstention"]["to_reference"]["difference"] == 0
    assert two["tool_calls"]["abstention"]["interval_95"] == pytest.approx([0.2065, 1], abs=1e-4)
    assert "tool cases: 2, 1 of them to be answered without a call; give at least 200" in ran.err
    sqnr = {Path(where).name: facts["sqnr_db"]["overall"]["experts"] for where, facts in found["weights"].items()}
    assert 8 < sqnr["two"] < 12 < 18 < sqnr["four"]
    assert all(len(facts["kl_per_layer"]) == 4 for facts in found["weights"].values())


def test_a_pack_against_itself_loses_nothing(moe_pack: MoePack, folder: Path) -> None:
    ran = moe_pack("quality", folder / "two", "--reference", folder / "two", "--text", folder / "text", "--json")
    found = json.loads(ran.out)["packs"][0]
    assert found["text"]["kl"] == dict.fromkeys(found["text"]["kl"], 0.0)
    assert (found["text"]["top1_agreement"]["mean"], found["text"]["perplexity_ratio"]) == (1, 1)
    assert found["structural"]["quote_flips"] == 0
    assert json.loads(ran.out)["weights"][str(folder / "two")]["sqnr_db"]["overall"]["experts"] is None


def test_hidden_states_on_disk_change_no_figure(moe_pack: MoePack, folder: Path, tmp_path: Path) -> None:
    ask = ("quality", folder / "two", "--reference", folder / "four", "--text", folder / "text", "--json")
    spilled = moe_pack(*ask, "--memory", "1B", "--scratch", tmp_path, "--threads", 1)
    assert spilled.code == 0
    assert json.loads(spilled.out) == json.loads(moe_pack(*ask).out)


def test_the_table_has_a_column_for_each_pack_and_k(moe_pack: MoePack, folder: Path) -> None:
    ran = moe_pack(
        *(
            "quality",
            folder / "two",
            "--reference",
            folder / "four",
            "-k",
            3,
            "-k",
            2,
            "--reference-experts-per-token",
            3,
        ),
        *("--text", folder / "text", "--tools", folder / "tools", "-n", 2),
    )
    assert ran.code == 0, ran.err
    assert "K 3" in ran.out
    assert "K 2" in ran.out
    assert "100.0 % [20.7, 100.0]" in ran.out
    for row in (
        "KL, mean",
        "same top token",
        "perplexity ratio",
        "quote to other",
        "parse",
        "abstention",
        "SQNR, down",
    ):
        assert row in ran.out
    assert "text, reference" in ran.err


def test_packs_of_one_name_are_told_apart(moe_pack: MoePack, folder: Path, tmp_path: Path) -> None:
    for name in ("a/x/pack", "b/x/pack", "b/other"):
        shutil.copytree(folder / "two", tmp_path / name)
    packs = [tmp_path / name for name in ("a/x/pack", "b/x/pack", "b/other")]
    ask = ("quality", *packs, "--reference", folder / "four", "--text", folder / "text", "--no-weights")
    ran = moe_pack(*ask, "--picture", tmp_path / "p.svg", "--layer-tokens", 64)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[1].split() == ["a/x/pack", "b/x/pack", "other"]
    assert "<!-- a/x/pack -->" in (tmp_path / "p.svg").read_text()


def test_what_is_traded_is_in_the_table(
    moe_pack: MoePack, folder: Path, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    build_pack(make_checkpoint(), tmp_path / "small", trunk="affine4-g64")
    ask = ("quality", folder / "two", tmp_path / "small", "--reference", folder / "four", "--text", folder / "text")
    ran = moe_pack(*ask, "--no-weights")
    assert ran.code == 0, ran.err
    rows = {line[:27].strip(): line[27:].split() for line in ran.out.splitlines()}
    assert rows["trunk"][::3] == ["source,", "affine4-g64,"]
    assert rows["trunk: quantized matrices"] == ["none", "affine4-g64,", "affine8-g64"]
    two, small = map(float, rows["pack"][::2])
    assert small < two
    found = json.loads(moe_pack(*ask, "--no-weights", "--json").out)["packs"][1]
    assert (found["recipe"]["trunk_format"], found["trunk_formats"]) == ("affine4-g64", ["affine4-g64", "affine8-g64"])


def test_no_figure_of_the_table_is_cut_on_a_narrow_terminal(moe_pack: MoePack, folder: Path) -> None:
    packs = [folder / "two"] * 4
    ran = moe_pack("quality", *packs, "--reference", folder / "four", "--text", folder / "text", "--no-weights")
    assert ran.code == 0
    assert "…" not in ran.out


def test_another_tools_tokens_are_scored(moe_pack: MoePack, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(json.dumps({"windows": [list(range(120)), list(range(120))], "scored_from": 60}))
    ran = moe_pack(
        "quality",
        folder / "two",
        "--reference",
        folder / "four",
        "--tokens",
        tmp_path / "tokens",
        "--json",
        "--no-weights",
    )
    assert json.loads(ran.out)["packs"][0]["text"]["positions"] == 2 * 59


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_picture(moe_pack: MoePack, folder: Path, tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        ask = ("quality", folder / "two", "--reference", folder / "four", "--text", folder / "text")
        assert moe_pack(*ask, "--picture", path, "--layer-tokens", 64).code == 0
    first, second = (path.read_bytes() for path in paths)
    assert first[:5] == {"svg": b"<?xml", "png": b"\x89PNG\r"}[suffix]
    assert suffix == "png" or first == second


@pytest.mark.parametrize("path", ["locked.svg", "locked/new.svg"])
def test_a_picture_that_may_not_be_written_is_refused_first(
    moe_pack: MoePack, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked.svg").touch()
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)  # whoever runs the tests, root too
    ask = ("quality", folder / "two", "--reference", folder / "four", "--text", folder / "text")
    ran = moe_pack(*ask, "--picture", tmp_path / path)
    ran.refused(2, tmp_path / path, "may not be written")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_picture_that_cannot_be_written_costs_no_figure(
    moe_pack: MoePack, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: tuple[str, ...]
) -> None:
    (tmp_path / "gone").mkdir()
    measured = evaluation.Evaluator.evaluate

    def evaluate(*given: Any) -> evaluation.Evaluation:
        (tmp_path / "gone").rmdir()
        return measured(*given)

    monkeypatch.setattr(evaluation.Evaluator, "evaluate", evaluate)
    ask = ("quality", folder / "two", "--reference", folder / "four", "--text", folder / "text", "--layer-tokens", 2)
    ran = moe_pack(*ask, "--no-weights", "--picture", tmp_path / "gone" / "a.svg", *form)
    ran.refused(4, tmp_path / "gone" / "a.svg", "cannot be written")
    assert '"mean"' in ran.out if form else "KL, mean" in ran.out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "there is nothing to score"),
        (("--text", "{text}", "--tokens", "{text}"), "--text and --tokens exclude each other"),
        (("--text", "{none}"), "cannot be read: No such file"),
        (("--text", "{text}", "-k", 4), "4 experts per token are outside the model's 1 to 3"),
        (("--text", "{text}", "--reference-experts-per-token", 0), "outside the model's 1 to 3"),
        (("--text", "{text}", "--window", 1), "windows of 1 tokens"),
        (("--text", "{text}", "--limit", 20), "a limit of 20 tokens is too small for {text}: it gives 19 positions"),
        (("--text", "{text}", "--picture", "{text}.pdf"), "is neither .svg nor .png"),
        (("--text", "{text}", "--picture", "{none}/a.svg"), "is not a folder to write into"),
        (("--text", "{text}", "--picture", "{text}.svg"), "{text}.svg is there and is no file"),
        (("--text", "{text}", "--memory", "much"), "is not a size"),
        (("--text", "{text}", "--threads", 0), "0 threads are outside"),
        (("--text", "{text}", "--scratch", "{none}"), "{none} is not a folder to write hidden states into"),
        (("--text", "{text}", "--scratch", "{text}"), "{text} is not a folder to write hidden states into"),
        (("--tokens", "{text}", "--window", 512), "--window cuts --text, which is not given"),
        (("--tools", "{tools}", "--window", 512), "--window cuts --text, which is not given"),
        (("--tools", "{tools}", "--limit", 512), "--limit is for --text or --tokens"),
        (("--text", "{text}", "-n", 256), "-n is for --tools, which is not given"),
        (("--tools", "{tools}", "--layer-tokens", 10), "--layer-tokens is for --text or --tokens"),
        (("--text", "{text}", "--layer-tokens", 10), "only --json and --picture show --layer-tokens"),
        (("--tools", "{tools}", "--no-weights", "--picture", "a.svg"), "--picture would be empty"),
        (("--text", "{text}", "--no-weights", "--picture", "a.svg", "--layer-tokens", 0), "--picture would be empty"),
        (("--text", "{text}", "--layer-tokens", -1), "give 0 for none"),
        (("--tools", "{text}"), "line 1"),
        (("--tools", "{tools}", "-n", 0), "answers of 0 tokens are outside 1 to"),
        (("--tools", "{tools}", "-n", 5000), "answers of 5000 tokens are outside 1 to"),
        (("--tools", "{tools}", "-n", 5000), "what the longest case, {tools}, line 1, leaves"),
        (("--tools", "{long}"), "{long}, line 2: it has"),
        (("--tools", "{schema}"), "{schema}, line 2: the parameters"),
        (("--tools", "{endless}"), "{endless}, line 2: the parameters"),
        (("--tools", "{other}"), "{other}, line 2: \"expected\" calls 'g'"),
    ],
)
def test_requests_that_cannot_be_met(
    moe_pack: MoePack, folder: Path, options: tuple[object, ...], sentence: str
) -> None:
    names = {name: folder / name for name in ("text", "tools", "none", "long", "schema", "endless", "other")}
    filled = [str(option).format(**names) for option in options]
    ran = moe_pack("quality", folder / "two", "--reference", folder / "four", *filled)
    assert ran.code == 2
    for name, path in names.items():
        sentence = sentence.replace(f"{{{name}}}", str(path))
    assert sentence in ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err


def test_a_case_that_the_template_refuses_is_named(
    moe_pack: MoePack, folder: Path, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint.copy(Variant(), tmp_path / "checkpoint")
    refusing = "{% if messages[0].role == 'nobody' %}{{ raise_exception('nobody speaks') }}{% endif %}hi"
    (checkpoint / "chat_template.jinja").write_text(refusing)
    build_pack(checkpoint, tmp_path / "pack")
    ran = moe_pack("quality", tmp_path / "pack", "--reference", folder / "two", "--tools", folder / "refused")
    ran.refused(2, f"{folder / 'refused'}, line 2: ", "nobody speaks")


def test_another_model_is_refused(moe_pack: MoePack, folder: Path, make_checkpoint: CheckpointMaker) -> None:
    other = make_checkpoint(Variant(ODD))
    ran = moe_pack("quality", folder / "two", "--reference", other, "--text", folder / "text")
    assert ran.code == 2
    sentence = f"they are not the same model: hidden_size is 128 in {folder / 'two'}, but 384 in {other}"
    assert sentence in ran.err


def test_a_damaged_pack_is_never_scored(
    moe_pack: MoePack, make_checkpoint: CheckpointMaker, pack: Path, folder: Path
) -> None:
    path = pack / "experts" / "layer_02.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    ran = moe_pack("quality", pack, "--reference", make_checkpoint(), "--text", folder / "text")
    assert ran.code == 1
    assert "layer 2, expert 0" in ran.err
    assert ran.out == ""


def test_an_interrupt_is_130(moe_pack: MoePack, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "compare_streams", interrupted)
    ran = moe_pack("quality", folder / "two", "--reference", folder / "four", "--text", folder / "text")
    assert (ran.code, ran.out) == (130, "")
    assert ran.err.endswith("error: interrupted\n")


@pytest.mark.parametrize(
    ("missing", "options"), [("matplotlib", ("--picture", "{0}/a.svg")), ("jsonschema", ("--tools", "{0}/tools"))]
)
def test_what_an_extra_would_bring_is_said(
    moe_pack: MoePack, folder: Path, monkeypatch: pytest.MonkeyPatch, missing: str, options: tuple[str, str]
) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == missing:
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    filled = [option.format(folder) for option in options]
    ran = moe_pack("quality", folder / "two", "--reference", folder / "four", "--text", folder / "text", *filled)
    assert ran.code == 2
    assert f"needs {missing}; install it with `pip install '.[quality]'`" in ran.err
