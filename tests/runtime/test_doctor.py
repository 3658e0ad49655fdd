"""`moe-run doctor`: a plan and a forecast that agree with what a run would do, and say where figures come from."""

import json
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from packs import build_with

from moepack.convert.recipe import Recipe
from moepack.convert.shipped import CHECKPOINT
from moepack.layout.reader import Pack
from moepack.manifests.errors import UsageError
from moepack.runtime import _native, doctor, host, report, speed
from moepack.runtime.backends.choice import open_cpu
from moepack.runtime.cli import main
from moepack.runtime.devices import DEVICES, device
from moepack.runtime.engine import EngineOptions, plan_run


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("packs") / "pack"
    build_with(CHECKPOINT, target, Recipe())
    return target


@dataclass(frozen=True)
class Tuned:
    """A disk as it is found when a pack is first used."""

    access: str = "direct"
    depth: int = 8
    split: int = 2
    gigabytes_per_second: float | None = 0.95
    measured: bool = True


def called(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["moe-run", "doctor", *map(str, arguments)])
    with pytest.raises(SystemExit) as leaving:
        main()
    return int(leaving.value.code or 0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known figures in the place of measurements."""
    monkeypatch.setattr(speed, "memory_bandwidth", lambda threads: 30.0)
    monkeypatch.setattr(speed, "kernel_bandwidth", lambda pack, backend: 7.0)


def test_what_it_plans_is_what_a_run_would_take(pack: Path, quick: None) -> None:
    options = EngineOptions(memory=200_000_000, slots=40, context=100, experts_per_token=3)
    with Pack.open(pack) as opened:
        found = doctor.diagnose(opened, options, Tuned())
        assert found.plan == plan_run(opened, options)
        assert found.demand.experts == 3 * sum(record.stride for record in opened.records)
    assert found.machine.rates == doctor.Rates(0.95, 30.0, 7.0)
    lines = "\n".join(report.diagnosis_lines("pack", found))
    for part in (
        r"experts +0\.7 MB  40 of 128 experts, 16384 bytes each",
        r"state +\S+ MB  a context of 100 tokens",
        r"together +\S+ MB  of a budget of 200\.0 MB",
        r"disk +0\.95 GB/s  direct, 8 reads at once, each in 2 pieces",
        r"memory +30\.00 GB/s  measured",
        r"digests +checked",
        r"decode, uniform routing \(worst case\): \d+ tokens/s, limited by disk; 31% of the experts in memory",
        r"prefill, as far as the disk allows, in chunks of 100: ",
    ):
        assert re.search(part, lines), lines


def test_the_document_holds_the_whole_diagnosis(
    pack: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, pack, "--memory", "150MB", "--no-check-digests", "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert sum(found["memory"]["planned_bytes"].values()) == found["memory"]["total"] <= 150_000_000
    assert found["digests_checked"] is False
    assert found["machine"]["measured"] is True
    assert found["machine"]["instruction_set"] == _native.instruction_set()
    assert [each["limit"] for each in found["decode"]] == ["compute"] * 2
    assert {"trunk", "experts", "experts_per_token"} <= set(found["per_token"])


def test_a_budget_that_is_too_small_is_refused_as_a_run_refuses_it(
    pack: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, pack, "--memory", "1MB") == 2
    assert re.search(r"^error: .*give --memory \S+GB or more", capsys.readouterr().err)


def test_a_device_is_planned_from_what_others_published_and_says_so(
    pack: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, pack, "--device", "iphone-17-pro") == 0
    shown = capsys.readouterr().out
    assert "iPhone 17 Pro" in shown
    assert "moepack was not run there" in shown
    assert "of a budget of 6.44 GB" in shown  # half of 12 GiB
    assert re.search(r"disk +3\.20 GB/s  published", shown)
    assert "measured, " not in shown
    assert called(monkeypatch, pack, "--device", "m3-max-48gb", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["machine"]["measured"], found["machine"]["free"], found["machine"]["protection"]) == (
        False,
        None,
        None,
    )
    assert len(found["machine"]["sources"]) == 3


def test_a_device_that_nobody_knows_is_refused_with_those_that_are_known(
    pack: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, pack, "--device", "abacus") == 2
    assert "m4-max-64gb, m5-pro-48gb, m5-max-128gb" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no device"):
        device("")


@pytest.mark.parametrize("each", DEVICES, ids=lambda each: each.name)
def test_every_device_has_figures_in_range_with_sources(each: Any) -> None:
    assert device(each.name) is each
    assert 2**33 <= each.memory <= 2**40
    assert 1 <= each.disk_gigabytes_per_second < 20 < each.memory_gigabytes_per_second < 2000
    assert each.memory_source
    assert each.disk_source
    assert 0 < each.usable < 1


def test_device_names_are_distinct() -> None:
    assert len({each.name for each in DEVICES}) == len(DEVICES)


@pytest.mark.parametrize(
    ("limit", "swap", "expected"),
    [
        (resource.RLIM_INFINITY, 1, "locked"),
        (1000, 1, "locked"),
        (999, 0, "no swap"),
        (999, 1, "may be swapped"),
    ],
)
def test_what_keeps_the_trunk_in_memory(
    limit: int, swap: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal:  16 kB\nSwapTotal:       {swap} kB\n")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    assert host.protection(1000, tmp_path / "meminfo") == expected
    if limit == 999:
        assert host.protection(1000, tmp_path / "none") == "may be swapped"  # a system that does not say


def test_memory_and_kernels_are_measured(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "BUFFER_BYTES", 4 * 2**20)
    monkeypatch.setattr(speed, "LEAST_SECONDS", 0.0)
    assert 0.1 < speed.memory_bandwidth(2) < 10_000
    with Pack.open(pack) as opened:
        assert 0 < speed.kernel_bandwidth(opened, open_cpu(1)) < 10_000
