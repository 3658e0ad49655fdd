"""What runs report: JSON documents and lines for people, from results and an engine's counters."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from operator import itemgetter
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from ..manifests.console import printable
from . import host
from ._native import instruction_set
from .bench import Measured, Workload
from .doctor import Diagnosis, how_read
from .engine import Engine
from .figures import Ceiling, Figures, share
from .forecast import Forecast
from .generate import Result
from .memory import MemoryPlan
from .quantities import megabytes
from .sampling import Sampling
from .timeline import ROUND_TRIP_SOURCE, Timeline
from .watch import Costs

UNCHECKED = "digests are not checked: damage to the pack would change the answer unnoticed"
UNPROVEN = (
    "the Metal backend was tested without Apple hardware, on which moepack's authors have run nothing: compare its"
    " answers with --backend cpu before you rely on them"
)
DROPPED = "page cache dropped before it"
NOT_DROPPED = "but this system cannot be asked to drop its page cache, so records may have come from memory"
COLUMNS = (
    "tokens/s: median of {repetitions}; range: slowest to fastest; MB/token: expert records read, slots' hits excluded;"
    " in memory: wanted experts that were in a slot; GB/s: bytes read over the whole phase's time, computing included;"
    " from disk: the share of the bytes read that the page cache did not have; of limit: the time that the storage"
    " needs for the bytes that were missing, or the computing time if that is longer (c), over the time it took"
)
NOTHING_RUN = "Figures others published; moepack was not run there"
PROTECTIONS = {
    "locked": "locked in memory",
    "no swap": "not locked, but without swap it cannot be evicted",
    "may be swapped": "may be swapped out; raise the limit of locked memory (ulimit -l)",
    None: "",
}
RANDOM = "random, so no hit rate is as good as a text's"
TEXT = "of the text given"
PREDICTED = (
    "timeline: a PREDICTION for the Metal backend from counted bytes and operations and the published figures above;"
    " nothing was run there. Milliseconds of each part where it occurs, at full bandwidth"
)
IDLE = (
    "measured by the thread that answers, from its waking after a router to its raising of the event; the GPU idles as"
    " long, less its shared expert, and while the two signals travel, which nobody measures"
)
HEAD_WAITS = "on Metal the stage 'head' of a decoded token is the wait for all that was enqueued of it"
NO_COMPARISON = "moepack's authors have run nothing on Apple hardware: there is no figure of theirs to compare with"


def notes(engine: Engine) -> list[str]:
    """What the user gave up (the model's own K, checks), what is unproven, and a budget nobody asked for."""
    used, own = engine.experts_per_token, engine.model.num_experts_per_tok
    found = [] if used == own else [f"{used} of {own} experts per token: not the model's own K"]
    found += [] if engine.options.check_digests else [UNCHECKED]
    found += unproven(engine.backend.name)
    return [*found, budget_line(engine.memory)] if engine.memory.reason else found


def unproven(backend: str | None) -> list[str]:
    """What a user of a backend must know of it, by its name."""
    return [UNPROVEN] if backend is not None and backend.startswith("metal") else []


def budget_line(plan: MemoryPlan) -> str:
    """How much memory a run may take, and why as much when nobody asked for it."""
    reason = f" ({plan.reason})" if plan.reason else ""
    return (
        f"memory: at most {megabytes(plan.total)} of a budget of {megabytes(plan.budget)}{reason}, with"
        f" {plan.slots} expert slots, for a context of {plan.context} tokens in chunks of {plan.chunk}"
    )


def engine_facts(engine: Engine) -> dict[str, Any]:
    """How an engine ran, and its memory in bytes."""
    return {
        "experts_per_token": engine.experts_per_token,
        "model_experts_per_token": engine.model.num_experts_per_tok,
        "threads": engine.options.threads,
        "backend": engine.backend.name,
        "instruction_set": instruction_set(),
        "exact": engine.backend.exact,
        "access": engine.access,
        "depth": engine.tuning.depth,
        "split": engine.tuning.split,
        "chunk": engine.memory.chunk,
        "context": engine.context,
        "slots": engine.memory.slots,
        "memory_budget": engine.memory.budget,
        "digests_checked": engine.options.check_digests,
        "planned_bytes": dict(engine.stats.resident),
        "peak_resident_bytes": host.peak_resident(),
    }


def answer_document(result: Result, sampling: Sampling, engine: Engine) -> dict[str, Any]:
    """Everything about one answer, for `generate --json`."""
    stats = engine.stats
    return {
        "text": result.text,
        "tokens": list(result.tokens),
        "finish_reason": result.finish,
        "stop": result.stop,
        "prompt_tokens": result.prompt_tokens,
        "generated_tokens": len(result.tokens),
        "prompt_seconds": result.prompt_seconds,
        "decode_seconds": result.decode_seconds,
        "prompt_tokens_per_second": result.prompt_rate,
        "decode_tokens_per_second": result.decode_rate,
        "sampling": {"greedy": sampling.greedy, **asdict(sampling)},
        "bytes_read": stats.bytes_read,
        "records_read": stats.records_read,
        "hit_rate": share(stats.slot_hits, stats.records_read),
        "read_wait_seconds": stats.wait_seconds,
        **engine_facts(engine),
    }


def statistics_line(result: Result, engine: Engine) -> str:
    """One line on an answer: speeds, bytes read, hit rate, memory."""
    stats = engine.stats
    parts = [
        f"prompt {_counted(result.prompt_tokens, result.prompt_rate)}",
        f"answer {_counted(len(result.tokens), result.decode_rate)}",
        f"read {megabytes(stats.bytes_read)}",
        f"{_percent(share(stats.slot_hits, stats.records_read))} of the experts were in memory",
        f"resident at most {megabytes(host.peak_resident())}",
    ]
    return "; ".join(parts)


def bench_document(measured: Measured[Engine], workload: Workload, costs: Costs | None) -> dict[str, Any]:
    """Everything a benchmark found, for `bench --json`."""
    return {
        "workload": {
            "prompt_tokens": workload.prompt_tokens,
            "decode_tokens": workload.decode_tokens,
            "repetitions": workload.repetitions,
            "tokens": "random" if workload.text is None else "text",
        },
        "page_cache_dropped": measured.cache_dropped,
        "storage_gigabytes_per_second": median(measured.storage_rates),
        "storage_rates": measured.storage_rates,
        "figures": [asdict(figure) for figure in measured.figures],
        **({} if costs is None else {"traced": asdict(costs)}),
        **engine_facts(measured.engine),
    }


def bench_remarks(measured: Measured[Engine], workload: Workload, costs: Costs | None) -> str:
    """What a reader of the table must know: how it was run, and what the figures do and do not say."""
    engine = measured.engine
    plan, own, random = engine.memory, engine.model.num_experts_per_tok, workload.text is None
    remarks = [
        f"{workload.prompt_tokens} prompt and {workload.decode_tokens} decode tokens, {RANDOM if random else TEXT}",
        f"{engine.experts_per_token} of {own} experts per token; {plan.slots} slots of {plan.slot_bytes} bytes;"
        f" {engine.options.threads} threads, {engine.backend.name}; {_arithmetic(exact=engine.backend.exact)}; digests"
        f" {'checked' if engine.options.check_digests else 'NOT checked'}",
        f"experts are read {how_read(replace(engine.tuning, access=engine.access))}",
        f"cold: a fresh engine for each phase, {DROPPED if measured.cache_dropped else NOT_DROPPED}; decoding follows"
        " a prompt of one token, so that the slots are all but empty",
        "warm: after a prompt and an answer in the same engine; the page cache holds what it holds",
        f"the storage reads random records at {median(measured.storage_rates):.2f} GB/s"
        f" ({min(measured.storage_rates):.2f} to {max(measured.storage_rates):.2f}, before each cold repetition)",
        *map(_stage_line, measured.figures),
        *([HEAD_WAITS] if engine.backend.name.startswith("metal") else []),
        *([] if costs is None else _cost_lines(costs)),
        COLUMNS.format(repetitions=workload.repetitions),
        f"resident at most {megabytes(host.peak_resident())}, over all repetitions",
    ]
    return "\n".join(map(printable, [*remarks, *([NO_COMPARISON] if sys.platform == "darwin" else [])]))


def _cost_lines(costs: Costs) -> list[str]:
    """What tracing found of a warm token."""
    traced = f"traced: {costs.tokens} warm tokens of {costs.milliseconds:.2f} ms"
    if costs.answer_milliseconds is None or costs.gpu_milliseconds is None:
        return [f"{traced}; no GPU was asked for anything"]
    names = ("command_buffers", "sections", "kernels")
    asked = ", ".join(f"{costs.asked[name]:.4g} {name.replace('_', ' ')}" for name in names)
    return [
        f"{traced}; per token: {asked}, {costs.allocations:.4g} allocations",
        f"the GPU waits for the host {costs.dependencies:.4g} times a token, {costs.dependencies_per_layer:.4g} per"
        f" layer; the host waits for the GPU: {_by_thread(costs.asked['host_waits'])}",
        f"the GPU's work took {costs.gpu_milliseconds:.2f} ms a token from start to end, in which the host took"
        f" {costs.answer_milliseconds:.2f} ms to answer: {IDLE}",
    ]


def _by_thread(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {count:.4g}" for name, count in sorted(counts.items())) or "never"


def bench_table(title: str, figures: Sequence[Figures]) -> Table:
    """A benchmark's figures, one row for each phase and condition."""
    table = Table(title=Text(printable(title)), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("tokens/s", "range", "MB/token", "in memory", "GB/s", "from disk", "of limit"):
        table.add_column(heading, justify="right")
    for figure in figures:
        table.add_row(*_row(figure))
    return table


def _row(figure: Figures) -> tuple[str, ...]:
    return (
        f"{figure.condition} {figure.phase}",
        f"{figure.tokens_per_second:.2f}",
        f"{figure.slowest:.3g}-{figure.fastest:.3g}",
        f"{figure.bytes_per_token / 1e6:.2f}",
        _percent(figure.hit_rate),
        f"{figure.gigabytes_per_second:.2f}",
        _percent(figure.storage_share),
        _of_ceiling(figure.ceiling),
    )


def _of_ceiling(ceiling: Ceiling | None) -> str:
    if ceiling is None:
        return "n/a"
    return f"{ceiling.share:.0%}{' c' if ceiling.cause == 'compute' else ''}"


def _stage_line(figure: Figures) -> str:
    """What a row of the table has no room for: the first token, waiting, and the stages."""
    first = figure.first_token_seconds
    parts = [] if first is None else [f"first token after {first:.2f} s"]
    parts.append(f"{figure.wait_share:.0%} of the time waiting for records")
    if figure.foreseen_used_share is not None:
        parts.append(f"{figure.foreseen_used_share:.0%} of the guesses right")
    stages = sorted(figure.stage_milliseconds.items(), key=itemgetter(1), reverse=True)
    parts += [f"{name} {milliseconds:.2f} ms/token" for name, milliseconds in stages]
    return f"{figure.condition} {figure.phase}: {'; '.join(parts)}"


def _counted(tokens: int, rate: float | None) -> str:
    return f"{tokens} tokens" if rate is None else f"{tokens} tokens at {rate:.2f}/s"


def _percent(part: float | None) -> str:
    return "n/a" if part is None else f"{part:.0%}"


def diagnosis_document(found: Diagnosis) -> dict[str, Any]:
    """Everything that was found, for `doctor --json`."""
    return {
        "memory": {"budget": found.plan.budget, "planned_bytes": found.plan.parts(), "total": found.plan.total},
        **{name: getattr(found.plan, name) for name in ("slots", "slot_bytes", "context", "chunk")},
        "machine": asdict(found.machine),
        "per_token": asdict(found.demand),
        "decode": [asdict(each) for each in found.decode],
        "prefill_ceiling": [asdict(each) for each in found.prefill],
        "digests_checked": found.digests_checked,
        "exact": found.exact,
        "predicted_timelines": [asdict(each) for each in found.timelines],
    }


def diagnosis_lines(title: str, found: Diagnosis) -> list[str]:
    """The same for a person."""
    shown = [_memory_lines(found), _speed_lines(found), _forecast_lines(found), _timeline_lines(found)]
    told = [line for lines in shown for line in lines]
    return list(map(printable, (f"{title} on {_machine_line(found)}", *told, *unproven(found.machine.backend))))


def _machine_line(found: Diagnosis) -> str:
    machine = found.machine
    if machine.measured:
        return f"{machine.name}: {megabytes(machine.memory)} of memory, {megabytes(machine.free or 0)} free"
    return f"{machine.name}: {megabytes(machine.memory)} of memory. {NOTHING_RUN}"


def _memory_lines(found: Diagnosis) -> list[str]:
    plan, planned = found.plan, "" if found.machine.measured else "; planned as for the CPU backend"
    all_experts = found.demand.layers * found.demand.experts_per_layer
    remarks = {
        "trunk": PROTECTIONS[found.machine.protection],
        "state": f"a context of {plan.context} tokens",
        "scratch": f"chunks of {plan.chunk} tokens",
        "experts": f"{plan.slots} of {all_experts} experts, {plan.slot_bytes} bytes each",
    }
    parts = [_line(name, megabytes(size), remarks.get(name, "")) for name, size in plan.parts().items()]
    reason = f"; {plan.reason}" if plan.reason else ""
    return [
        *parts,
        _line("together", megabytes(plan.total), f"of a budget of {megabytes(plan.budget)}{reason}{planned}"),
    ]


def _speed_lines(found: Diagnosis) -> list[str]:
    machine, rates = found.machine, found.machine.rates
    how = f"measured, {machine.threads} threads" if machine.measured else "published"
    by = (
        machine.backend
        if machine.backend and machine.backend.startswith("metal")
        else f"{machine.threads} threads, {machine.backend}"
    )
    lines = [
        _line("disk", _rate(rates.disk), machine.disk),
        _line("memory", _rate(rates.memory), how),
        *([_line("kernels", _rate(rates.kernels), f"measured, {by}")] if machine.measured else []),
        _line("products", "exact" if found.exact else "rounded", _arithmetic(exact=found.exact)),
        _line("digests", "checked" if found.digests_checked else "NOT checked", ""),
    ]
    return [*lines, *(f"  {source}" for source in machine.sources)]


def _forecast_lines(found: Diagnosis) -> list[str]:
    demand = found.demand
    lines = [
        f"forecast: each token reads {megabytes(demand.trunk)} of trunk and {megabytes(demand.experts)} of experts;"
        " reads and computing overlapped, nothing else counted, so these are ceilings"
    ]
    lines += [_decode_line(each) for each in found.decode]
    if found.prefill:
        ceilings = ", ".join(f"{each.chunk}: {_tokens(each.tokens_per_second)}" for each in found.prefill)
        lines.append(f"  prefill, as far as the disk allows, in chunks of {ceilings}")
    return lines


def _decode_line(each: Forecast) -> str:
    limit = f", limited by {each.limit}" if each.limit else ""
    return (
        f"  decode, {each.assumption}: {_tokens(each.tokens_per_second)}{limit};"
        f" {each.hit_rate:.0%} of the experts in memory, {megabytes(each.bytes_missed)} from disk per token"
    )


def _timeline_lines(found: Diagnosis) -> list[str]:
    if not found.timelines:
        return []
    source = f"  host: one round trip a layer, {ROUND_TRIP_SOURCE}"
    return [PREDICTED, *map(_timeline_line, found.timelines), source]


def _timeline_line(each: Timeline) -> str:
    parts = ", ".join(f"{part.name} {1e3 * part.seconds / part.times:.3g}" for part in each.parts)
    return (
        f"  {each.assumption}: {parts}; a layer {1e3 * each.layer_seconds:.3g}, with the shared expert beside host and"
        f" reads; a token {1e3 * each.seconds:.3g}, {_tokens(each.tokens_per_second)}"
    )


def _line(name: str, value: str, remark: str) -> str:
    return f"  {name:<9}{value:>12}  {remark}".rstrip()


def _arithmetic(*, exact: bool) -> str:
    return "activations are floats" if exact else "activations are rounded to 15 bits where matrices are quantized"


def _rate(gigabytes_per_second: float | None) -> str:
    return "unknown" if gigabytes_per_second is None else f"{gigabytes_per_second:.2f} GB/s"


def _tokens(rate: float | None) -> str:
    return "not limited" if rate is None else f"{rate:.{0 if rate >= 100 else 1}f} tokens/s"
