"""docs/timeline.md: how long a token of the 397B model should take on Apple devices, by counting. `make timeline`

A prediction beside what the reference system's authors measured. The trunk and the records are those that `moe-pack`
plans for the published checkpoint, from its headers; bandwidths and peaks are runtime/devices.py's. Nothing is run.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from extended.performance.page import filled, table
from extended.synthetic import Width, write_headers

from moepack.convert.checkpoint import Checkpoint
from moepack.convert.plan import plan_pack, understand
from moepack.convert.recipe import Recipe
from moepack.runtime import forecast, timeline
from moepack.runtime.devices import Device, device
from moepack.runtime.forecast import Demand
from moepack.runtime.timeline import NAMES, Name, Part, Sizes, Timeline

PAGE = Path(__file__).parents[2] / "docs" / "timeline.md"
WIDTH = Width(layers=60, vocab=248_320)
DEVICES = (device("m3-max-48gb"), device("iphone-17-pro"))
KS = (4, 10)
BESIDES = 700_000_000  # bytes: process and tokenizer, a context of POSITION tokens, scratch; `doctor` counts them
NOTHING, UNIFORM, LOCAL = "none in memory", "uniform", "local"
TITLES: dict[Name, str] = {
    "embedding": "embedding, once a token",
    "delta": "DeltaNet mixer, 45 layers",
    "attention": "attention mixer, 15 layers",
    "router": "router",
    "host": "host's answer",
    "reads": "expert reads",
    "shared": "shared expert, beside both",
    "experts": "routed experts",
    "combine": "combine",
    "head": "head, once a token",
}
# Flash-MoE, paper/flash_moe.tex at commit 3601d41, "Per-Layer Breakdown": 2-bit experts, K = 4, M3 Max, milliseconds.
MEASURED = {"CMD1 wait": 0.87, "CPU attention": 0.15, "CMD2 wait": 0.45, "expert I/O": 1.37, "other": 0.06}
MEASURED_TOKEN = (174, 5.74)  # ms, tokens/s: the paper's sum, and results.tsv
ANSWER = {"answer": 1e3 * timeline.ROUND_TRIP_SECONDS, "source": timeline.ROUND_TRIP_SOURCE}
BAR = 64  # characters of a drawn layer

HEAD = (
    "**Everything of moepack's on this page is a prediction.** Nothing of ours has ever run on Apple hardware."
    " Bytes and operations are counted, and divided by bandwidths and peaks that others published; `make timeline`"
    " writes the page, runtime/timeline.py counts. The figures of the reference system, Flash-MoE, are its"
    " authors' measurements of their own system, on an M3 Max with 48 GB; we did not repeat them.",
    "A part takes as long as the slower of moving its bytes at the full bandwidth and computing at the peak. Left"
    " out are launches, kernels that reach less, digests, heat, and that disk and GPU contend for memory (the"
    " reference gained nothing by reading ahead beside the GPU: reads took 31 % less, a GPU stage 73 % more). So"
    " all but the host's answer are **lower bounds of time, and tokens per second are upper bounds** if that"
    " answer takes no less than assumed; the last column of the last table is one whatever it takes.",
)
ORDER = (
    "**What overlaps what.** After a layer's router the GPU raises an event, computes the shared expert, and"
    " waits, once a layer, for the host, which has meanwhile read what was missing. Then it computes the K experts"
    " in one launch, those that were in memory too. So reads of a layer run beside its shared expert and nothing"
    " else; guesses at later layers' experts are not counted. A layer takes mixer + router + max(shared expert,"
    " host's answer + reads) + experts + combine.",
    "**The host's answer** is taken as {answer:.1f} ms a layer: {source}. It stands for the signal, a thread's"
    " waking, its bookkeeping in Python and the GPU's going on; it may be wrong by a factor in either direction,"
    " and each 0.1 ms of it is 6 ms a token.",
)
WORK = (
    "One token at position {position} with the default recipe (`book2-g8` experts, the checkpoint's 4-bit trunk,"
    " float32 caches and states): megabytes moved and million floating-point operations, each time; reads as if no"
    " expert were in memory. Keys and values are counted once for all the heads that share them; activations stay"
    " in caches and are counted in combine only. In no part, on either device, would computing at the peak take"
    " longer than moving."
)
LAYERS = (
    "Milliseconds of each part where it occurs. In memory: what share of the wanted experts is in a slot, of the"
    " {slots} ({each:.1f} a layer) that fit into {usable:.1f} GB beside a trunk of {trunk:.2f} GB and"
    " {besides:.1f} GB of everything else: none; what uniform routing gives; and what the reference's locality"
    " would ([forecast.py](../runtime/forecast.py)), measured at K = 4, so that for K = 10 it is a guess. Slots"
    " that do not hold one token's experts are not counted on."
)
BESIDE = (
    "The reference's stages cut a layer elsewhere than our parts: CMD1 are the mixer's input projections and the"
    " experts of the layer before, CMD2 output projection, norm, router and half of the shared expert; each ends"
    " with a wait, which is counted in it. Its reads are all wanted experts at 11.5 GB/s, whatever the page cache"
    " served, so the column with none in memory is the one to compare.",
    "The reference computes for {ratio:.1f} times as long as moving our bytes would take, waits included, and its"
    " speed is {share:.0%} of what is predicted here. How much of that our kernels would win cannot be known from"
    " counting. Unpacking may limit routed experts before memory does: slotstream measured kernels of 4, 3 and 2"
    " bits as equally fast (0.198, 0.194 and 0.187 ms).",
)
CLOSE = (
    "Reading takes the most in every row. On the M3 Max the host's answers and the mixers' weights come next, and"
    " are alike. The disk's figure there is the reference authors' sequential {disk} GB/s; with the 11.5 GB/s that"
    " they got for four scattered reads, K = 4 with none in memory takes {slow:.0f} ms a token.",
    "The iPhone keeps next to no expert in memory: half of its 12 GiB is taken as what iOS leaves an app, and the"
    " trunk fills most of that. Whether iOS leaves so much, and what the speed of its storage and GPU is once it"
    " is warm, is not known. FlashMoE-iOS reports 0.003 tokens/s for this model on a phone, computed by the CPU;"
    " no faster figure was found.",
)


@dataclass(frozen=True)
class Case:
    """A timeline of one device, K and assumption about what is in memory."""

    device: Device
    memory: str
    found: Timeline


def counted() -> Sizes:
    """The pack that the default recipe would make of the published checkpoint, from headers alone."""
    with tempfile.TemporaryDirectory() as folder:
        write_headers(WIDTH, Path(folder))
        with Checkpoint.open(folder) as checkpoint:
            plan = plan_pack(understand(checkpoint), Recipe()).plan
    return Sizes(plan.model, plan.records, {spec.name: spec.size for spec in plan.trunk})


def slots(sizes: Sizes, on: Device) -> int:
    """Expert slots for what trunk and BESIDES leave of the memory that a process may take."""
    room = int(on.usable * on.memory) - sum(sizes.trunk.values()) - BESIDES
    return room // max(record.stride for record in sizes.records)


def cases(sizes: Sizes, on: Device) -> list[Case]:
    """Of one device: each K with nothing in memory, and with what two assumptions about routing give, if anything."""
    shares = [(k, memory, share) for k in KS for memory, share in _in_memory(sizes, on, k).items()]
    return [Case(on, memory, timeline.predict(sizes, on, k, share, memory)) for k, memory, share in shares]


def _in_memory(sizes: Sizes, on: Device, k: int) -> dict[str, float]:
    """Shares of the wanted experts."""
    model, count = sizes.model, slots(sizes, on)
    experts = k * sum(record.stride for record in sizes.records)
    demand = Demand(sum(sizes.trunk.values()), experts, model.num_layers, model.num_experts, k)
    hits = {UNIFORM: forecast.uniform_hits(demand, count), LOCAL: forecast.local_hits(demand, count)}
    return {NOTHING: 0.0, **{memory: share for memory, share in hits.items() if share}}


def page(sizes: Sizes) -> str:
    """The whole of docs/timeline.md."""
    by_device = {each: cases(sizes, each) for each in DEVICES}
    return "\n".join(
        [
            "# A predicted timeline\n",
            *map(filled, HEAD),
            *(filled(text.format(**ANSWER)) for text in ORDER),
            *_devices(),
            *_work(by_device[DEVICES[0]]),
            *(line for found in by_device.values() for line in _device(sizes, found)),
            *_tokens([case for found in by_device.values() for case in found]),
            *_close(sizes),
        ]
    )


def _devices() -> Iterator[str]:
    yield "## Published figures\n"
    heads = ("", *(each.title for each in DEVICES))
    rates: dict[str, Callable[[Device], str]] = {
        "memory, GB/s": lambda each: f"{each.memory_gigabytes_per_second:g}: {each.memory_source}",
        "disk, GB/s": lambda each: f"{each.disk_gigabytes_per_second:g}: {each.disk_source}",
        "GPU, float32 TFLOPS": lambda each: f"{each.gpu_teraflops:g}: {each.gpu_source}",
        "memory of a process, GB": lambda each: f"{each.usable * each.memory / 1e9:.1f} of {each.memory / 1e9:.1f}",
    }
    yield from table(heads, [(name, *map(rate, DEVICES)) for name, rate in rates.items()])


def _work(found: Sequence[Case]) -> Iterator[str]:
    yield "## What a token moves and computes\n"
    few, many = (next(case.found for case in found if case.found.experts_per_token == k) for k in KS)
    yield filled(WORK.format(position=few.position))
    heads = ("part", "times", *(f"{what}, K = {k}" for k in KS for what in ("MB", "Mflop")))
    rows = zip(_shown(few), _shown(many), strict=True)
    yield from table(heads, [(TITLES[a.name], str(a.times), *_amounts(a), *_amounts(b)) for a, b in rows])


def _shown(found: Timeline) -> list[Part]:
    return [part for part in found.parts if part.name != "host"]


def _amounts(part: Part) -> tuple[str, str]:
    return f"{part.bytes / part.times / 1e6:.3g}", f"{part.operations / part.times / 1e6:.3g}"


def _device(sizes: Sizes, found: Sequence[Case]) -> Iterator[str]:
    on, count = found[0].device, slots(sizes, found[0].device)
    trunk, layers = sum(sizes.trunk.values()) / 1e9, sizes.model.num_layers
    yield f"## {on.title}: predicted\n"
    facts = {"slots": count, "each": count / layers, "usable": on.usable * on.memory / 1e9, "trunk": trunk}
    yield filled(LAYERS.format(besides=BESIDES / 1e9, **facts))
    heads = ("ms", *(f"K = {case.found.experts_per_token}, {case.memory}" for case in found))
    yield from table(heads, list(_layer_rows(found)))
    if on == DEVICES[0]:
        yield from _beside(found[0].found)
    yield filled(f"A layer on average, K = 4, none in memory, to scale: {on.title}, predicted.")
    yield _drawn(_spans(found[0].found))
    if on == DEVICES[0]:
        yield filled("The reference, measured by its authors, to the same scale:")
        yield _drawn(_in_turn(MEASURED), end=max(sum(MEASURED.values()), 1e3 * found[0].found.layer_seconds))


def _layer_rows(found: Sequence[Case]) -> Iterator[tuple[str, ...]]:
    yield "in memory", *(f"{case.found.hit_rate:.0%}" for case in found)
    for name in NAMES:
        yield TITLES[name], *(_milliseconds(_part(case.found, name)) for case in found)
    yield "**a layer on average**", *(f"**{1e3 * case.found.layer_seconds:.2f}**" for case in found)


def _part(found: Timeline, name: Name) -> Part:
    return next(part for part in found.parts if part.name == name)


def _milliseconds(part: Part) -> str:
    return f"{1e3 * part.seconds / part.times:.3f}"


def _beside(found: Timeline) -> Iterator[str]:
    yield "### Beside the reference's measured layer: K = 4, 2-bit experts\n"
    layers = _part(found, "router").times
    computing = _mean(found, layers, "delta", "attention", "router", "shared", "experts", "combine")
    measured = sum(MEASURED[name] for name in ("CMD1 wait", "CPU attention", "CMD2 wait"))
    rows = (
        ("computing (CMD1 wait, CPU attention, CMD2 wait)", f"{computing:.2f}", f"{measured:.2f}"),
        ("expert reads", f"{_mean(found, layers, 'reads'):.2f}", f"{MEASURED['expert I/O']:.2f}"),
        ("host's answer; other", f"{_mean(found, layers, 'host'):.2f}", f"{MEASURED['other']:.2f}"),
        ("less what overlaps", f"-{1e3 * found.hidden_seconds / layers:.2f}", "some, not said"),
        ("a layer", f"{1e3 * found.layer_seconds:.2f}", f"{sum(MEASURED.values()):.2f}"),
        ("a token", f"{1e3 * found.seconds:.0f}", f"{MEASURED_TOKEN[0]}"),
        ("tokens/s", f"at most {found.tokens_per_second:.1f}", f"{MEASURED_TOKEN[1]}"),
    )
    facts = {"ratio": measured / computing, "share": MEASURED_TOKEN[1] / found.tokens_per_second}
    yield from table(("ms", "moepack, PREDICTED, none in memory", "Flash-MoE, MEASURED by its authors"), rows)
    yield from (filled(text.format(**facts)) for text in BESIDE)


def _mean(found: Timeline, layers: int, *names: Name) -> float:
    """Milliseconds that parts take in a layer, on average."""
    return 1e3 * sum(_part(found, name).seconds for name in names) / layers


def _spans(found: Timeline) -> list[tuple[str, float, float]]:
    """A layer's parts with their beginnings and ends, in milliseconds."""
    layers = _part(found, "router").times
    mixer, router, wait, reads, shared, experts, combine = (
        _mean(found, layers, *names)
        for names in (
            ("delta", "attention"),
            ("router",),
            ("host",),
            ("reads",),
            ("shared",),
            ("experts",),
            ("combine",),
        )
    )
    chosen = mixer + router
    ready = chosen + max(shared, wait + reads)
    spans = [*_in_turn({"mixer": mixer, "router": router, "host's answer": wait, "expert reads": reads})]
    spans += [("shared expert", chosen, chosen + shared), ("routed experts", ready, ready + experts)]
    return [*spans, ("combine", ready + experts, ready + experts + combine)]


def _in_turn(durations: dict[str, float]) -> list[tuple[str, float, float]]:
    names, ends = list(durations), [0.0]
    for duration in durations.values():
        ends.append(ends[-1] + duration)
    return [(name, *span) for name, span in zip(names, pairwise(ends), strict=True)]


def _drawn(spans: Sequence[tuple[str, float, float]], end: float | None = None) -> str:
    """Bars below each other, to the scale of the reference's layer or of their own end, if that is later."""
    last = max(end or 0.0, *(stop for _, _, stop in spans), sum(MEASURED.values()))
    lines = []
    for name, start, stop in spans:
        first, until = round(BAR * start / last), round(BAR * stop / last)
        bar = " " * first + "#" * max(1, until - first)
        lines.append(f"{name:<15}{stop - start:>7.3f}  {bar}")
    return "\n".join(["```text", *lines, f"{'':<15}{'':>7}  0{f'{last:.2f} ms':>{BAR - 1}}", "```\n"])


def _tokens(found: Sequence[Case]) -> Iterator[str]:
    yield "## A token: predicted upper bounds of speed\n"
    heads = ("device", "K", "experts in memory", "MB read", "ms", "tokens/s at most", "if answers took no time")
    yield from table(heads, [_token_row(case) for case in found])


def _token_row(case: Case) -> tuple[str, ...]:
    found = case.found
    share = f"{case.memory}, {found.hit_rate:.0%}" if found.hit_rate else case.memory
    without = found.seconds - _part(found, "host").seconds
    rates = (f"{found.tokens_per_second:.2f}", f"{1 / without:.2f}")
    read = f"{_part(found, 'reads').bytes / 1e6:.0f}"
    return case.device.title, str(found.experts_per_token), share, read, f"{1e3 * found.seconds:.0f}", *rates


def _close(sizes: Sizes) -> Iterator[str]:
    mac = DEVICES[0]
    fast = timeline.predict(sizes, mac, KS[0], 0.0, NOTHING)
    extra = _part(fast, "reads").bytes / forecast.GB * (1 / 11.5 - 1 / mac.disk_gigabytes_per_second)
    facts = {"disk": mac.disk_gigabytes_per_second, "slow": 1e3 * (fast.seconds + extra)}
    yield from (filled(text.format(**facts)) for text in CLOSE)


if __name__ == "__main__":
    PAGE.write_text(page(counted()))
