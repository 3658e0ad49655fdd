"""What a pack would be like to run, here or on a machine that somebody published figures of.

Brings together the memory plan, what the machine delivers and the forecast; knows nothing of tables or JSON. Nothing of
the pack but its small files is read, except to measure.
"""

from dataclasses import dataclass, replace

from ..layout.reader import Pack
from . import forecast, host, speed, timeline
from ._native import instruction_set
from .backends import choice
from .backends.metal.backend import MetalBackend
from .backends.metal.speed import kernel_bandwidth as gpu_bandwidth
from .devices import Device
from .engine import EngineOptions, plan_run
from .forecast import Demand, Forecast, Rates
from .memory import MemoryPlan
from .speed import Disk
from .timeline import Timeline

CHUNKS = (512, 2048, 4096)  # for which a ceiling of prefill is given, besides the plan's own


@dataclass(frozen=True)
class Machine:
    """Where the pack would run. Bandwidths in GB/s, None where not known; `free` is None for a published device.

    `measured` here, or published: then `sources` says by whom. `protection` is what keeps the trunk in memory.
    """

    name: str
    measured: bool
    memory: int
    free: int | None
    rates: Rates
    disk: str
    threads: int | None
    instruction_set: str | None
    backend: str | None
    protection: host.Protection | None
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prefill:
    """What a disk allows in chunks of so many tokens; None where nothing has to be read."""

    chunk: int
    tokens_per_second: float | None


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `moe-run doctor` says of a pack; `timelines` of published Apple devices only, one a forecast."""

    plan: MemoryPlan
    machine: Machine
    demand: Demand
    decode: tuple[Forecast, Forecast]
    prefill: tuple[Prefill, ...]
    digests_checked: bool
    exact: bool
    timelines: tuple[Timeline, ...] = ()


def diagnose(pack: Pack, options: EngineOptions, disk: Disk | None) -> Diagnosis:
    """The pack on this machine, whose memory and kernels are measured; `disk` is what was measured of its disk.

    Raises UsageError for options that cannot be met, as a run would.
    """
    plan = plan_run(pack, options)
    return _diagnosis(pack, options, plan, _this_machine(pack, options, plan, disk))


def diagnose_for(pack: Pack, options: EngineOptions, device: Device) -> Diagnosis:
    """The pack on a published device; without a budget, on the share of its memory that one process may take.

    Memory is planned as for the CPU backend: no device is here to tell its GPU's limits. Raises UsageError for options
    that cannot be met there.
    """
    budget = options.memory or int(device.usable * device.memory)
    plan = plan_run(pack, replace(options, memory=budget, backend="cpu"))
    found = _diagnosis(pack, options, plan, _published(device))
    return replace(found, timelines=_timelines(pack, found, device))


def _timelines(pack: Pack, found: Diagnosis, device: Device) -> tuple[Timeline, ...]:
    """What the Metal backend should take there, for each forecast's share of experts in memory."""
    if device.gpu_teraflops is None:
        return ()
    sizes, position = timeline.Sizes.of(pack), min(timeline.POSITION, found.plan.context - 1)
    k = found.demand.experts_per_token
    return tuple(timeline.predict(sizes, device, k, each.hit_rate, each.assumption, position) for each in found.decode)


def _diagnosis(pack: Pack, options: EngineOptions, plan: MemoryPlan, machine: Machine) -> Diagnosis:
    demand = Demand.of(pack, options.experts_per_token or pack.model.num_experts_per_tok)
    decode = forecast.forecasts(demand, plan.slots, machine.rates)
    prefill = _prefill(demand, plan, machine.rates.disk)
    exact = options.exact or choice.kind_here(options.backend) == "metal"
    return Diagnosis(plan, machine, demand, decode, prefill, options.check_digests, exact)


def _prefill(demand: Demand, plan: MemoryPlan, disk: float | None) -> tuple[Prefill, ...]:
    if disk is None:
        return ()
    return tuple(
        Prefill(chunk, forecast.prefill_ceiling(demand, plan.slots, chunk, disk))
        for chunk in sorted({plan.chunk, *CHUNKS})
    )


def _this_machine(pack: Pack, options: EngineOptions, plan: MemoryPlan, disk: Disk | None) -> Machine:
    memory = speed.memory_bandwidth(options.threads)
    kernels, backend = _kernels(pack, options, plan)
    return Machine(
        name="this machine",
        measured=True,
        memory=host.memory_total(),
        free=host.memory_free(),
        rates=Rates(disk.gigabytes_per_second if disk else None, memory, kernels),
        disk=how_read(disk) if disk else "not measured",
        threads=options.threads,
        instruction_set=instruction_set(),
        backend=backend,
        protection=host.protection(plan.trunk),
    )


def _kernels(pack: Pack, options: EngineOptions, plan: MemoryPlan) -> tuple[float, str]:
    """What the expert kernels deliver where a run would compute, and what that is called."""
    if choice.kind_here(options.backend) == "cpu":
        cpu = choice.open_cpu(options.threads, exact=options.exact)
        return speed.kernel_bandwidth(pack, cpu), cpu.name
    k = options.experts_per_token or pack.model.num_experts_per_tok
    gpu = choice.open_backend(options.backend, pack.model, plan, k, options.threads, exact=options.exact)
    assert isinstance(gpu, MetalBackend)
    return gpu_bandwidth(pack, gpu, k), gpu.name


def how_read(disk: Disk) -> str:
    """A few words on how records are read."""
    pieces = f"each in {disk.split} pieces" if disk.split > 1 else "each in one piece"
    return f"{disk.access}, {disk.depth} reads at once, {pieces}{'' if disk.measured else ', not measured'}"


def _published(device: Device) -> Machine:
    return Machine(
        name=device.title,
        measured=False,
        memory=device.memory,
        free=None,
        rates=Rates(device.disk_gigabytes_per_second, device.memory_gigabytes_per_second),
        disk="published",
        threads=None,
        instruction_set=None,
        backend=None,
        protection=None,
        sources=(
            f"memory bandwidth: {device.memory_source}",
            f"disk: {device.disk_source}",
            *([f"GPU, {device.gpu_teraflops} TFLOPS: {device.gpu_source}"] if device.gpu_teraflops else []),
        ),
    )
