"""moe-run bench on the shipped model."""

import os
import re
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
from moe_run_program import called, document, moe_run
from traced import check_nesting, slices_of

from moepack.layout.reader import Pack
from moepack.runtime.disk import DEFAULT
from moepack.runtime.trace import TOKEN

FEW = ("--prompt-tokens", 6, "--decode-tokens", 3, "--repetitions", 2)


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


@pytest.mark.parametrize("exact", [(), ("--exact",)], ids=["rounded", "exact"])
def test_bench_says_how_it_computed_and_read(pack: Path, exact: tuple[str, ...]) -> None:
    few = ("--prompt-tokens", 2, "--decode-tokens", 1, "--repetitions", 1, "--access", "buffered")
    found = document("bench", pack, *few, *exact)
    assert (found["exact"], found["access"]) == (bool(exact), "buffered")
    assert (found["depth"], found["split"]) == (DEFAULT.depth, DEFAULT.split)  # a small pack is not worth tuning for


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


def test_bench_traces_the_cpu_s_stages(pack: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    found = document("bench", pack, *FEW, "--backend", "cpu", "--trace", file)["traced"]
    slices = slices_of(file)
    check_nesting(slices)
    assert {each.track for each in slices} == {"MainThread"}
    names = Counter(each.name for each in slices)
    assert names.keys() == {TOKEN, "mixer", "router", "reads", "experts", "shared", "head"}
    with Pack.open(pack) as opened:
        layers = opened.model.num_layers
    assert (names[TOKEN], names["mixer"], names["shared"]) == (6, 6 * layers, 6 * layers)
    assert (found["asked"]["command_buffers"], found["allocations"]) == (0, 0)
    assert (found["answer_milliseconds"], found["gpu_milliseconds"]) == (None, None)
    assert "traced" not in document("bench", pack, *FEW, "--backend", "cpu")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("absent/trace.json", "is not a folder to write into"), ("folder", "is there and is no file")],
)
def test_a_trace_that_cannot_be_written_is_refused_before_anything_is_measured(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("moepack.runtime.cli.measure", None)  # which would be a defect
    run = called("bench", pack, *FEW, "--trace", tmp_path / name)
    assert (run.returncode, run.stdout) == (2, "")
    (line,) = run.stderr.splitlines()
    assert sentence in line
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_a_run_that_fails_leaves_no_trace_behind(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("moepack.layout.atomic.os.write", full)
    run = called("bench", pack, *FEW, "--backend", "cpu", "--trace", tmp_path / "trace.json")
    assert run.returncode == 4
    assert "trace.json" in run.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
