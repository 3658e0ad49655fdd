"""docs/quality.md, rendered from scores: what was measured, and beside which aim."""

from collections.abc import Iterable, Iterator
from typing import Any

from aims import aims
from subjects import BASELINE

HEAD = """# Quality

What 2 and 3 bits cost, measured by `moe-pack quality`. `make quality` builds every pack below and writes this page.

KL is the divergence of the pack's next-token distribution from the reference's over the whole vocabulary, in nats, at
every position of the same tokens (teacher-forced); ± is a standard error, the larger of the plain one and the one
clustered by document. The ratio to the baseline is paired over positions, and so is its error. *Structural* positions
are those where the reference expects a quote, brace, bracket, colon, comma, backslash, newline or digit; a *quote flip*
is one where it expects a quote and the pack expects something that is no quote. Bits per weight count codes,
scales and grids of the routed experts; the second figure is that of the same formats at the widths of
Qwen3.5-397B-A17B, whose longer rows make row scales cheaper, and it is what aims are about. `--bits` are recipes that
moe-pack chose. Trunks stay as they are in the checkpoint, so what is measured is the experts' loss.
"""
SUBJECTS = {
    "trained-66m": """## A trained 66-million-parameter model

A Qwen3.5-MoE in bfloat16 with 16 experts, 4 per token, which writes English, Python and tool calls. The reference is
its bfloat16 checkpoint. Calibration text, scored text and tool cases are disjoint.
""",
    "demo": """## The demonstration model

The shipped 13-million-parameter model (`convert/demo`), whose checkpoint is MLX 4-bit. The reference is that
checkpoint, and packs are made from its codes. Text and tool cases are conversations drawn for evaluation,
with words and values that its training has not seen; calibration is drawn as training was.
""",
}


def render(results: dict[str, Any]) -> str:
    """The whole page."""
    parts = [HEAD]
    for name, result in results.items():
        parts += [SUBJECTS[name], *_subject(name, result)]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _subject(name: str, result: dict[str, Any]) -> Iterator[str]:
    texts = [text for text in ("text", "chat") if text in result]
    yield "### Aims"
    yield _table("measure|aim|measured|", (aim.row() for aim in aims(result, texts)))
    for text in texts:
        scored = result[text]["scores"]["text"]
        yield f"### KL on {text}: {scored['positions']:,} positions of {scored['documents']} documents"
        yield _divergences(result[text])
    yield "### Tool calls"
    yield _tools(result["tools"])
    yield "### Weights: signal to quantization noise, dB"
    yield _weights(result[texts[0]])
    yield f"KL of each layer's experts alone, and their noise:\n\n![KL and SQNR per layer](quality-{name}.svg)"
    yield "### Fewer experts per token"
    yield _fewer(result)
    if "llama" in result:
        yield "### Beside llama.cpp"
        yield _llama(result["llama"])


def _divergences(run: dict[str, Any]) -> str:
    heads = "experts|bits|397B|KL|± SE|ratio to baseline|median|p99|p99.9|top-1|PPL ratio|structural KL|quote flips"
    return _table(heads, (_divergence(name, row) for name, row in run["packs"]))


def _divergence(name: str, row: dict[str, Any]) -> list[str]:
    text, structural, kl = row["text"], row["structural"], row["text"]["kl"]
    ratio = row["kl_to_first_pack"]
    return [
        f"{name}{' (baseline)' if name == BASELINE.name else ''}",
        f"{row['bits_per_expert_weight']:.3f}",
        f"{row['wide_bits']:.3f}",
        f"{kl['mean']:.4f}",
        f"{kl['standard_error']:.4f}",
        f"{ratio['mean']:.3f} ± {ratio['standard_error']:.3f}",
        *(f"{kl[part]:.4f}" for part in ("median", "p99", "p99.9")),
        f"{100 * text['top1_agreement']['mean']:.2f} %",
        f"{text['perplexity_ratio']:.4f}",
        f"{structural['kl']['mean']:.4f}",
        str(structural["quote_flips"]),
    ]


def _tools(run: dict[str, Any]) -> str:
    measures = ("parse", "schema", "tool", "arguments")
    reference = run["scores"]["reference"]["tool_calls"]
    cases = reference["parse"]["cases"]
    rows = [["the reference", *(f"{100 * reference[m]['rate']:.1f} %" for m in measures), *[""] * len(measures)]]
    for name, row in run["packs"]:
        calls = row["tool_calls"]
        rates = [f"{100 * calls[m]['rate']:.1f} ± {100 * calls[m]['standard_error']:.1f} %" for m in measures]
        rows.append([name, *rates, *(_difference(calls[m]["to_reference"]) for m in measures)])
    heads = "experts|parse|schema|right tool|right arguments|" + "|".join(f"Δ {m}" for m in measures)
    said = f"{cases} greedy, unconstrained answers. Δ: percentage points from the reference, 95 % paired bootstrap.\n\n"
    return said + _table(heads, rows)


def _difference(to: dict[str, Any]) -> str:
    low, high = (100 * end for end in to["interval_95"])
    return f"{100 * to['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"


def _weights(run: dict[str, Any]) -> str:
    rows = []
    for name, value in run["weights"].items():
        overall = value["sqnr_db"]["overall"]
        rows.append([name, *(_decibels(overall[part]) for part in ("gate", "up", "down", "experts"))])
    return _table("experts|gate|up|down|all", rows)


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.2f}"


def _fewer(result: dict[str, Any]) -> str:
    first = result.get("text") or result["chat"]
    own = dict(first["packs"])
    rows = []
    for name, row in result["fewer"]["packs"]:
        both = own[name]["text"]["kl"], row["text"]["kl"]
        rows.append([name, f"{both[0]['mean']:.4f}", f"{both[1]['mean']:.4f} (K = {row['experts_per_token']})"])
    return _table("experts|KL, the model's own K|KL, fewer experts", rows)


def _llama(both: dict[str, Any]) -> str:
    rows = []
    for row in both["theirs"]["rows"]:
        if row["name"].startswith("experts-"):
            kl, top = row["quality"]["val_text"]["kl"], row["quality"]["val_text"]["top1_percent"][0]
            rows.append((row["bits_per_expert_weight"], f"llama.cpp {row['name'].removeprefix('experts-')}", kl, top))
    for name, row in both["ours"]["packs"]:
        kl, top = row["text"]["kl"], 100 * row["text"]["top1_agreement"]["mean"]
        rows.append((row["bits_per_expert_weight"], f"**{name}**", (kl["mean"], kl["standard_error"]), top))
    positions = both["theirs"]["texts"]["val_text"]["positions"]
    said = (
        f"The same {positions:,} positions, each side by its own tool; only experts are quantized on either side"
        f" (llama.cpp {both['theirs']['llama_cpp']}, its importance matrix from the same calibration text)."
        " ± is clustered by window for ours, and is not for llama.cpp's.\n\n"
    )
    lines = (
        [name, f"{bits:.3f}", f"{kl[0]:.4f} ± {kl[1]:.4f}", f"{top:.2f} %"] for bits, name, kl, top in sorted(rows)
    )
    return said + _table("experts|bits here|KL|top-1", lines)


def _table(heads: str, rows: Iterable[list[str]]) -> str:
    names = heads.split("|")
    lines = [names, ["---"] + ["---:"] * (len(names) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
