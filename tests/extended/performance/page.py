"""docs/performance.md and its picture, from what `make bench` has kept. Says of nothing more than was measured."""

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from extended.performance.series import Series

PICTURE = "performance.svg"
OURS = "moepack"
TITLES = {
    "decode": "Decoding in memory",
    "prefill": "Prompts in memory",
    "beyond": "Decoding beyond memory",
    "wide": "Eight layers of full width in 6 GB",
    "digests": "What checking digests costs",
    "start": "From the command to the first token",
    "rounding": "What rounding activations costs",
    "locality": "Routing",
    "kernels": "Kernels",
}
TOKENS = "Tokens per second, medians of {rounds} alternating rounds; the ratio is moepack's median over the other's."
TEXTS = {
    "decode": (
        "32 random tokens one by one, from an empty context; all experts in memory, page cache warm. MB/token: the"
        " weights that one token is computed with, in each one's own format; GB/s: those times tokens per second. "
    )
    + TOKENS,
    "prefill": "Prompts of random tokens from an empty context; all experts in memory, page cache warm. " + TOKENS,
    "beyond": (
        "16 random tokens one by one in a control group with the stated limit, which counts the page cache too. Files"
        " are dropped from the page cache before every round. What is timed is warm: moepack's slots hold what a prompt"
        " and an answer left there, and peers have been through their own warm-up. moepack's `--memory` is the limit"
        " over 1.05. llama.cpp maps its file; ik_llama.cpp, whose llama-bench cannot prefetch, continues a prompt of"
        " one word. The second table is moepack's own account, also from empty slots. The ceiling is the time that the"
        " storage needs for the missing bytes, or the computing time if that is longer. "
    )
    + TOKENS,
    "wide": (
        "512 experts a layer, 10 per token, 8 layers, `affine2-g64`: 32 random tokens after prompts of 2048, `--memory"
        " 6GB`, in a control group of 6.3 GB. The prompts are computed in one chunk each. One run, of moepack alone."
    ),
    "digests": "The limited decoding above, with and without comparing each record with its digest. " + TOKENS,
    "start": "`moe-run generate` on the demo model, one token, in a new process: seconds.",
    "rounding": (
        "By default, products of quantized matrices see activations rounded to fifteen bits, in blocks of 32 that share"
        " a scale; `--exact` keeps them in float32. The divergence of the one from the other, on the trained"
        " 66-million-parameter model with the default 2-bit experts, by the scorer of `moe-pack quality`, with standard"
        " errors clustered by document. Quantizing the experts itself costs about 0.08. With eight bits it was 1.0e-3"
        " in prose, and 2.7e-3 with a 4-bit trunk: a router whose best experts are nearly tied chooses others."
    ),
    "locality": (
        "The share of the wanted experts that a least-recently-used cache of its own for each layer holds, by the"
        " cache's share of the layer's experts, and the share of a token's experts that the token before it had. The"
        " synthetic models share directions between tokens (tests/extended/synthetic.py) so that a text of theirs"
        " routes like the trained 512-expert model of the published figures: 3000 tokens, the first quarter not"
        " counted. Figures of the other sections are on random tokens of a model that shares none, as the peers' are."
    ),
    "kernels": "The 397B model's expert with 1 to 64 tokens by format, and its mixers without their projections.",
}
SIZES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of caches, in shares of a layer's experts
MODELS_OWN = "Qwen3.5-397B-A17B, 512 experts, 4 per token, published by Flash-MoE"
PUBLISHED = (MODELS_OWN, "49%", "59%", "68%", "71%", "", "8-34%")
HEAD = (
    "Measured by `make bench`, which writes this page; `make bench PARTS=decode,prefill` measures some of it anew."
    " Nothing here ran on Apple hardware.",
    "The model is synthetic, for speed depends on sizes and routing and not on what is said: four layers with all of"
    " Qwen3.5-397B-A17B's sizes (hidden 4096, three Gated DeltaNet layers and one of attention, experts of 1024), 32"
    " experts a layer and a vocabulary of 8192. llama.cpp and ik_llama.cpp read the same weights as Q2_K, 3.04 bits per"
    " weight in all, which is ours too: 2-bit experts and a 4-bit trunk. transformers reads them in bfloat16. Everyone"
    " has {threads} threads. K is the model's own, 10 of 32 experts. GB are 10^9 bytes.",
)


@dataclass(frozen=True)
class Facts:
    """What stands above the figures."""

    machine: dict[str, str]
    versions: dict[str, str]
    threads: int


def render(facts: Facts, parts: dict[str, list[Series]]) -> str:
    """The page, of the parts that were ever measured."""
    shown = [part for part in TITLES if parts.get(part)]
    return "\n".join(
        [*_head(facts, with_picture="decode" in shown), *(line for p in shown for line in _part(p, parts[p]))]
    )


def _head(facts: Facts, *, with_picture: bool) -> Iterator[str]:
    yield "# Performance\n"
    yield from (filled(paragraph.format(threads=facts.threads)) for paragraph in HEAD)
    yield from table(("", ""), ((name, value) for name, value in {**facts.machine, **facts.versions}.items()))
    if with_picture:
        yield f"![Decoding, tokens per second]({PICTURE})\n"


def _part(part: str, series: list[Series]) -> Iterator[str]:
    counts = sorted({len(each.values) for each in series})
    yield f"## {TITLES[part]}\n"
    yield filled(TEXTS[part].format(rounds=" or ".join(map(str, counts))))
    shown = {"decode": _decode, "locality": _locality, "kernels": _printed}
    shown |= {"start": _start, "digests": _digests, "rounding": _rounding}
    yield from shown.get(part, _rates)(series)
    if part in ("beyond", "wide", "digests"):
        yield from _accounts(series)


def _decode(series: list[Series]) -> Iterator[str]:
    """Speeds beside what memory had to deliver for them."""
    found = {(each.side, each.case): each for each in series}
    heads = ("", "tokens/s", "MB/token", "GB/s")
    yield from table(heads, ((each.side, _rate(found, each.side, each.case), *_traffic(each)) for each in series))


def _traffic(series: Series) -> tuple[str, str]:
    size = series.seen["bytes_per_token"]
    return f"{size / 1e6:.0f}", f"{size * series.median / 1e9:.1f}"


def _rates(series: list[Series]) -> Iterator[str]:
    """Contenders down, cases across."""
    cases, sides = _distinct(each.case for each in series), _distinct(each.side for each in series)
    found = {(each.side, each.case): each for each in series}
    yield from table(("tokens/s", *cases), ((side, *(_rate(found, side, case) for case in cases)) for side in sides))


def _rate(found: dict[tuple[str, str], Series], side: str, case: str) -> str:
    if (side, case) not in found:
        return ""
    each, mine = found[side, case], found.get((OURS, case))
    ranged = f"{each.median:.3g} ({min(each.values):.3g}-{max(each.values):.3g})"
    return ranged if side == OURS or mine is None else f"{ranged}, ratio {mine.median / each.median:.2f}"


def _accounts(series: list[Series]) -> Iterator[str]:
    """moepack's own account of its limited runs."""
    rates = ("read MB/token", "disk GB/s", "limit GB/s", "of the ceiling", "set by")
    heads = ("moepack", "tokens/s", "slots", "hits", *rates, "group's peak MB")
    yield from table(heads, (row for each in series if _figures(each, "warm") for row in _account(each)))


def _account(series: Series) -> Iterator[tuple[str, ...]]:
    """From empty slots, and warm."""
    name = series.case if series.side == OURS else series.side
    for condition in ("cold", "warm"):
        yield f"{name}, {condition}", *_accounted(series.seen["rounds"], _figures(series, condition))


def _accounted(rounds: list[dict[str, Any]], figures: list[dict[str, Any]]) -> tuple[str, ...]:
    ceilings = [each["ceiling"] for each in figures]
    return (
        f"{_median(figures, 'tokens_per_second'):.2f}",
        str(rounds[0]["slots"]),
        f"{_median(figures, 'hit_rate'):.0%}",
        f"{_median(figures, 'bytes_per_token') / 1e6:.1f}",
        f"{_median(figures, 'gigabytes_per_second'):.2f}",
        f"{_median(rounds, 'storage_gigabytes_per_second'):.2f}",
        f"{_median(ceilings, 'share'):.0%}",
        " or ".join(sorted({each["cause"] for each in ceilings})),
        f"{_median(rounds, 'group_peak') / 1e6:.0f}",
    )


def _figures(series: Series, condition: str) -> list[dict[str, Any]]:
    """The decoding of each round, where a round was one of `moe-run bench`."""
    rounds = [each["figures"] for each in series.seen.get("rounds", []) if "figures" in each]
    return [next(f for f in each if (f["condition"], f["phase"]) == (condition, "decode")) for each in rounds]


def _median(rows: list[dict[str, Any]], name: str) -> float:
    return median(row[name] or 0.0 for row in rows)


def _digests(series: list[Series]) -> Iterator[str]:
    checked, unchecked = series
    yield from table(("tokens/s", checked.case), ((each.side, f"{each.median:.2f}") for each in series))
    yield f"Checking takes {1 - checked.median / unchecked.median:.1%} of the speed.\n"


def _start(series: list[Series]) -> Iterator[str]:
    for each in series:
        prefill = median(round_["prefill"] for round_ in each.seen["rounds"])
        yield filled(
            f"{each.median:.2f} s in all, of which the prefill takes {prefill:.2f} s: {each.median - prefill:.2f} s for"
            " Python, the pack, its trunk and the tokenizer."
        )


def _rounding(series: list[Series]) -> Iterator[str]:
    heads = ("text", "KL, nats", "positions", "same likeliest token")
    yield from table(
        heads,
        (
            (
                each.side,
                f"{each.median:.2e} ± {each.seen['error']:.1e}",
                f"{each.seen['positions']}",
                f"{each.seen['agreement']:.2%}",
            )
            for each in series
        ),
    )


def _locality(series: list[Series]) -> Iterator[str]:
    """Models down, cache sizes across."""
    found = {(each.side, each.case): each.median for each in series}
    columns = [*(f"{size:.3g}" for size in SIZES), "overlap"]
    sides = _distinct(each.side for each in series)
    rows = [(side, *(_part_of(found.get((side, column))) for column in columns)) for side in sides]
    yield from table(("hit rate", *(f"1/{round(1 / size)}" for size in SIZES), "overlap"), [PUBLISHED, *rows])


def _part_of(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _printed(series: list[Series]) -> Iterator[str]:
    for each in series:
        yield f"```text\n{each.seen['printed'].rstrip()}\n```\n"


def table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Markdown: the first column to the left, the others to the right."""
    yield f"| {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * (len(heads) - 1)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def filled(paragraph: str) -> str:
    """A paragraph in lines of at most 120 characters, and an empty line."""
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def draw(parts: dict[str, list[Series]], path: Path) -> None:
    """Decoding in memory and beyond it, a panel each; the same figures give the same SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    panels = _panels([*parts.get("decode", []), *parts.get("beyond", [])])
    with matplotlib.rc_context({"svg.hashsalt": "moepack", "font.size": 9}):
        figure = Figure(figsize=(9, 1 + 1.3 * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), squeeze=False)[:, 0]
        for panel, (case, series) in zip(axes, panels.items(), strict=True):
            _draw_panel(panel, case, series)
        figure.savefig(path, metadata={"Date": None})


def _panels(series: list[Series]) -> dict[str, list[Series]]:
    return {case: [each for each in series if each.case == case] for case in _distinct(each.case for each in series)}


def _draw_panel(axes: Any, case: str, series: list[Series]) -> None:
    names, heights = [each.side for each in series], [each.median for each in series]
    bars = axes.barh(names, heights, color=["C0" if name == OURS else "0.7" for name in names])
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.invert_yaxis()
    axes.set(title=f"decoding, tokens/s, {case}")
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
