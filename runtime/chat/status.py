"""What a chat says of itself: a line after each answer, and /stats, from the engine's own counters."""

from dataclasses import dataclass

from .. import host
from ..figures import share
from ..quantities import megabytes
from .partner import Figures, Partner


@dataclass
class Totals:
    """Of all answers so far."""

    answers: int = 0
    prompt_tokens: int = 0
    computed: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0
    steps: int = 0
    decode_seconds: float = 0.0

    def add(self, figures: Figures) -> None:
        """Another answer."""
        result = figures.result
        self.answers += 1
        self.prompt_tokens += figures.prompt
        self.computed += result.prompt_tokens
        self.prompt_seconds += result.prompt_seconds
        self.tokens += len(result.tokens)
        self.steps += result.decode_steps
        self.decode_seconds += result.decode_seconds


def line(figures: Figures) -> str:
    """One answer in a line."""
    rate = figures.result.decode_rate
    speed = "" if rate is None else f" at {rate:.1f}/s"
    return "; ".join(
        (
            f"{len(figures.result.tokens)} tokens{speed}",
            f"context {figures.context_used} of {figures.context}",
            f"read {megabytes(figures.bytes_read)}",
            f"{_percent(share(figures.hits, figures.records))} of the experts were in memory",
        )
    )


def short(figures: Figures) -> str:
    """One answer in at most 60 characters, for the line below the prompt."""
    rate = figures.result.decode_rate
    speed = "" if rate is None else f"; {rate:.1f} tokens/s"
    hits = _percent(share(figures.hits, figures.records))
    return f"context {figures.context_used}/{figures.context}{speed}; {hits} in memory"


def report(totals: Totals, partner: Partner) -> list[str]:
    """Everything so far, a line for each kind."""
    stats, engine = partner.engine.stats, partner.engine
    parts = ", ".join(f"{name} {megabytes(size)}" for name, size in stats.resident.items())
    return [
        f"context: {partner.recall.position} of {engine.context} tokens",
        f"prompts: {totals.prompt_tokens} tokens in {totals.answers} answers, of which {totals.computed} were computed"
        f"{_rate(totals.computed, totals.prompt_seconds)}; the rest was still there",
        f"answers: {totals.tokens} tokens{_rate(totals.steps, totals.decode_seconds)}",
        f"experts: {engine.experts_per_token} per token; {stats.records_read} records, {megabytes(stats.bytes_read)},"
        f" were read; {_percent(share(stats.slot_hits, stats.records_read))} of those wanted were in memory;"
        f" {stats.foreseen_used} of {stats.foreseen} guesses were right",
        f"reading: {stats.read_seconds:.2f} s, of which computing waited {stats.wait_seconds:.2f} s",
        f"memory: planned {parts}; resident at most {megabytes(host.peak_resident())}",
    ]


def _rate(count: int, seconds: float) -> str:
    return f" at {count / seconds:.1f}/s" if count and seconds else ""


def _percent(part: float | None) -> str:
    return "n/a" if part is None else f"{part:.0%}"
