"""What the project set out to reach with 2 and 3 bits, beside what was measured: each aim met or missed.

Bits are those at the widths of Qwen3.5-397B-A17B. Which pack is "best" is told from the scores: the least KL.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from subjects import BASELINE, FOUR_BITS, FREE

from moepack.quantize.methods import CALIBRATED_METHODS

TWO_BITS, THREE_BITS = 2.51, 3.3
DATA_FREE = ("mse",)  # minmax is what others are held against
SAME_BYTES = "affine2-g64 mse"

Packs = dict[str, Any]  # scores by a recipe's name


@dataclass(frozen=True)
class Aim:
    """One aim, in words, and whether it was met."""

    measure: str
    aim: str
    measured: str
    met: bool

    def row(self) -> list[str]:
        """For a table."""
        return [self.measure, self.aim, self.measured, "met" if self.met else "**missed**"]


def aims(result: dict[str, Any], texts: list[str]) -> Iterator[Aim]:
    """All aims of one subject; divergences are those on the first of `texts`."""
    packs, calls = dict(result[texts[0]]["packs"]), dict(result["tools"]["packs"])
    free, best = _best(packs, DATA_FREE, TWO_BITS), _best(packs, CALIBRATED_METHODS, TWO_BITS)
    yield _of_divergence(SAME_BYTES, packs, 0.70)
    yield _of_noise(result[texts[0]]["weights"])
    yield _of_parsing(calls)
    yield _of_divergence(free, packs, 0.42, "best data-free at 2.51 bits, ")
    yield _of_divergence(best, packs, 0.28, "best calibrated at 2.51 bits, ")
    yield from _of_calls(best, calls)
    for text in texts:
        yield _of_quotes(best, dict(result[text]["packs"]), text)
    three = dict(result["three"]["packs"])
    free3 = _best(three, DATA_FREE, THREE_BITS)
    yield _of_divergence(free3, three, 0.35, "best data-free at 3.3 bits, ", FREE.name)


def _of_divergence(name: str, packs: Packs, most: float, what: str = "", to: str = BASELINE.name) -> Aim:
    """`packs` were scored with that of `to` first, to which the ratio is paired over positions."""
    ratio = packs[name]["kl_to_first_pack"]
    measured = f"{ratio['mean']:.3f} ± {ratio['standard_error']:.3f}"
    return Aim(f"{what}`{name}`: KL to that of `{to}`", f"at most {most:.2f}", measured, ratio["mean"] <= most)


def _of_noise(weights: Packs) -> Aim:
    ours, theirs = (weights[name]["sqnr_db"]["overall"]["experts"] for name in (SAME_BYTES, BASELINE.name))
    return Aim(
        f"`{SAME_BYTES}`: SQNR over that of `{BASELINE.name}`",
        "at least 2.6 dB",
        f"{ours - theirs:.2f} dB",
        ours - theirs >= 2.6,
    )


def _of_parsing(calls: Packs) -> Aim:
    parsed = calls[SAME_BYTES]["tool_calls"]["parse"]["rate"]
    return Aim(f"`{SAME_BYTES}`: tool calls that parse", "all", f"{100 * parsed:.1f} %", parsed == 1)


def _of_calls(best: str, calls: Packs) -> Iterator[Aim]:
    ours, theirs = calls[best]["tool_calls"], calls[FOUR_BITS.name]["tool_calls"]
    for measure in ("parse", "schema", "arguments"):
        rate, reference, error = ours[measure]["rate"], theirs[measure]["rate"], theirs[measure]["standard_error"]
        aim = f"within a standard error of 4 bits, {100 * reference:.1f} ± {100 * error:.1f} %"
        yield Aim(f"`{best}`: tool calls, {measure}", aim, f"{100 * rate:.1f} %", rate >= reference - error)


def _of_quotes(best: str, packs: Packs, text: str) -> Aim:
    ours, theirs = (packs[name]["structural"]["quote_flips"] for name in (best, FOUR_BITS.name))
    quotes = packs[best]["structural"]["classes"]["quote"]["positions"]
    measure = f"`{best}`: flips of {quotes:,} quotes in {text}"
    return Aim(measure, f"no more than 4 bits, {theirs}", str(ours), ours <= theirs)


def _best(packs: Packs, methods: tuple[str, ...], most: float) -> str:
    """The pack of least KL of those methods and at most so many bits; the data-free had no calibration either."""
    fitting = [name for name, row in packs.items() if name.split()[-1] in methods and row["wide_bits"] <= most]
    allowed = [name for name in fitting if methods != DATA_FREE or "--calibration" not in name]
    return min(allowed, key=lambda name: packs[name]["text"]["kl"]["mean"])
