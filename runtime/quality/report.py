"""The evaluation as a table: a row per figure, a column per pack and K."""

from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...manifests.console import printable
from ..quantities import megabytes
from .bootstrap import Rate
from .calling import NAMES
from .evaluation import Evaluation, Subject, Verdict
from .summary import Estimate, Summary
from .toolcalls import LEAST_CASES

WIDEST = 100_000
Row = tuple[str, list[str]]


def table(evaluation: Evaluation) -> Table:
    """What the terminal shows."""
    title = f"against {evaluation.reference}, K {evaluation.reference_experts_per_token}"
    shown = Table(title=Text(printable(title)), title_justify="left", box=None, pad_edge=False)
    shown.add_column("", style="dim", no_wrap=True)
    for verdict in evaluation.verdicts:
        name = printable(evaluation.names[verdict.subject.source.where])
        shown.add_column(Text(f"{name}\nK {verdict.experts_per_token}"), justify="right", no_wrap=True)
    for name, cells in _rows(evaluation):
        shown.add_row(name, *map(Text, map(printable, cells)))
    return shown


def width(shown: Table, console: Console) -> int:
    """Columns of text that a table takes, whatever the terminal: a figure is never broken or cut."""
    return console.measure(shown, options=console.options.update_width(WIDEST)).maximum


def remarks(evaluation: Evaluation) -> Iterator[str]:
    """What a person should know about the figures."""
    examination = evaluation.plan.examination
    if examination is not None and (cases := len(examination.cases)) < LEAST_CASES:
        silent = sum(case.expected is None for case in examination.cases)
        yield (
            f"tool cases: {cases}, {silent} of them to be answered without a call; give at least {LEAST_CASES},"
            " or models that differ may look alike"
        )


def _rows(evaluation: Evaluation) -> Iterator[Row]:
    verdicts = evaluation.verdicts
    yield "bits per expert weight", [f"{verdict.subject.bits_per_weight:.3f}" for verdict in verdicts]
    yield from _size_rows([verdict.subject for verdict in verdicts])
    if evaluation.plan.windows is not None:
        yield from _summary_rows("text", [verdict.text for verdict in verdicts])
        yield "text: KL over the first's", [with_error(v.to_first, 4) if v.to_first else "none" for v in verdicts]
    if evaluation.plan.windows is not None and evaluation.plan.classes is not None:
        yield from _summary_rows("structural", [v.structure.summary if v.structure else None for v in verdicts])
        yield "structural: quote to other", [_flips(verdict) for verdict in verdicts]
    if evaluation.reference_answers is not None:
        yield from _tool_rows(evaluation)
    if any(facts.noise for facts in evaluation.weights.values()):
        yield from _noise_rows(evaluation)


def _size_rows(subjects: list[Subject]) -> Iterator[Row]:
    packs = [subject.source.pack for subject in subjects]
    yield "pack", [megabytes(pack.total_bytes) for pack in packs]
    yield "trunk", [f"{pack.manifest.recipe.trunk_format}, {megabytes(pack.trunk.size)}" for pack in packs]
    yield "trunk: quantized matrices", [", ".join(subject.trunk_formats) or "none" for subject in subjects]


def _summary_rows(what: str, summaries: list[Summary | None]) -> Iterator[Row]:
    def row(name: str, cell: Callable[[Summary], str]) -> Row:
        return f"{what}: {name}", [cell(summary) if summary else "none" for summary in summaries]

    yield row("positions", lambda s: f"{s.positions:,}")
    yield row("KL, mean", lambda s: with_error(s.divergence, 5))
    yield row("KL, median", lambda s: f"{s.median:.5f}")
    yield row("KL, 99 %", lambda s: f"{s.p99:.4f}")
    yield row("KL, 99.9 %", lambda s: f"{s.p999:.4f}")
    yield row("same top token", lambda s: f"{100 * s.agreement.mean:.2f} ± {100 * s.agreement.error:.2f} %")
    yield row("perplexity of reference", lambda s: f"{s.reference_perplexity:.4f}")
    yield row("perplexity", lambda s: f"{s.perplexity:.4f}")
    yield row("perplexity ratio", lambda s: f"{s.ratio:.5f} ± {s.ratio_error:.5f}")


def with_error(estimate: Estimate, digits: int) -> str:
    """A mean and the error to claim."""
    return f"{estimate.mean:.{digits}f} ± {estimate.error:.{digits}f}"


def _flips(verdict: Verdict) -> str:
    if verdict.structure is None:
        return "none"
    quotes = verdict.structure.classes["quote"]
    return f"{quotes.flips} of {quotes.positions}"


def _tool_rows(evaluation: Evaluation) -> Iterator[Row]:
    reference = evaluation.reference_answers
    assert reference is not None
    rates = reference.rates()
    for name in NAMES:
        if name in rates:
            own = rates[name]
            yield f"tool calls: {name}, 95 % interval", [_rate(verdict, name) for verdict in evaluation.verdicts]
            yield f"  reference, {own.cases} cases", [_with_interval(own)] * len(evaluation.verdicts)
            yield (
                "  difference, 95 % interval",
                [_difference(verdict, evaluation, name) for verdict in evaluation.verdicts],
            )


def _rate(verdict: Verdict, name: str) -> str:
    assert verdict.answers is not None
    return _with_interval(verdict.answers.rates()[name])


def _with_interval(rate: Rate) -> str:
    low, high = rate.interval
    return f"{100 * rate.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _difference(verdict: Verdict, evaluation: Evaluation, name: str) -> str:
    assert verdict.answers is not None
    assert evaluation.reference_answers is not None
    found = verdict.answers.differences(evaluation.reference_answers)[name]
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _noise_rows(evaluation: Evaluation) -> Iterator[Row]:
    overall = {where: facts.noise.overall() for where, facts in evaluation.weights.items() if facts.noise}
    for name in ("gate", "up", "down", "experts"):
        yield f"SQNR, {name}", [f"{overall[v.subject.source.where][name]:.2f} dB" for v in evaluation.verdicts]
