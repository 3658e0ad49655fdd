"""What `make bench` reads off its peers, and the page it writes of what was kept."""

import json
from pathlib import Path
from typing import Any

import pytest
from extended.performance import page
from extended.performance.series import Series, keep, kept
from extended.performance.sides import evaluated_rate, printed_rate

FACTS = page.Facts({"processor": "an abacus"}, {"llama.cpp": "0.5 (abc)"}, threads=2)
DECODE = [
    Series("in memory", "moepack", [10.0, 30.0, 20.0], {"bytes_per_token": 5e8}),
    Series("in memory", "llama.cpp Q2_K", [5.0, 10.0, 8.0], {"bytes_per_token": 4e8}),
]


def limited(rate: float, **ceiling: Any) -> dict[str, Any]:
    """One round of `moe-run bench` under a limit, as a part keeps it."""
    warm = {"hit_rate": 0.75, "bytes_per_token": 4e7, "gigabytes_per_second": 0.8, "tokens_per_second": rate}
    ceiling = {"share": 0.7, "cause": "storage", **ceiling}
    figures = [
        {"condition": condition, "phase": phase, "ceiling": ceiling, **warm}
        for condition in ("cold", "warm")
        for phase in ("prompt", "decode")
    ]
    return {"figures": figures, "slots": 40, "storage_gigabytes_per_second": 1.2, "group_peak": 6e8}


def test_a_peer_s_rate_is_taken_as_printed_whatever_is_printed_around_it() -> None:
    printed = json.dumps([{"n_gen": 16, "avg_ts": 1.0, "samples_ts": [1.2187]}], indent=2)
    assert printed_rate(f"loading [1/2]\n{printed}\ndone") == 1.2187


def test_the_decoding_rate_is_not_the_prompt_s() -> None:
    printed = (
        "main: prompt eval time =     570.11 ms /     1 tokens (  570.11 ms per token,     1.75 tokens per second)\n"
        "main:        eval time =    6977.31 ms /    16 tokens (  436.08 ms per token,     2.29 tokens per second)\n"
    )
    assert evaluated_rate(printed) == 2.29
    with pytest.raises(ValueError, match="no evaluation time"):
        evaluated_rate("killed")


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    keep(tmp_path / "figures" / "decode.json", DECODE, "abc")
    assert kept(tmp_path / "figures" / "decode.json") == DECODE
    assert kept(tmp_path / "figures" / "prefill.json") == []


def test_the_page_shows_medians_ranges_ratios_and_traffic() -> None:
    shown = page.render(FACTS, {"decode": DECODE, "prefill": []})
    assert "| moepack | 20 (10-30) | 500 | 10.0 |" in shown
    assert "| llama.cpp Q2_K | 8 (5-10), ratio 2.50 | 400 | 3.2 |" in shown
    assert "of 3 alternating rounds" in " ".join(shown.split())
    assert "| processor | an abacus |" in shown
    assert "## Prompts" not in shown


def test_the_page_accounts_for_limited_runs() -> None:
    rounds = [limited(4.0), limited(5.0, share=0.9)]
    series = [Series("600 MiB", "moepack", [4.0, 5.0], {"rounds": rounds}), Series("600 MiB", "llama.cpp", [1.0], {})]
    shown = page.render(FACTS, {"beyond": series})
    assert "| llama.cpp | 1 (1-1), ratio 4.50 |" in shown
    assert "| 600 MiB, warm | 4.50 | 40 | 75% | 40.0 | 0.80 | 1.20 | 80% | storage | 600 |" in shown


def test_the_page_says_what_checking_costs() -> None:
    sides = {"checked": 4.75, "not checked": 5.0}
    series = [Series("600 MiB", name, [rate], {"rounds": [limited(rate)]}) for name, rate in sides.items()]
    assert "Checking takes 5.0% of the speed." in page.render(FACTS, {"digests": series})


def test_the_picture_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    for name in ("first.svg", "second.svg"):
        page.draw({"decode": DECODE}, tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("first.svg", "second.svg"))
    assert first == second
    assert b"<svg" in first
