"""How fast a pack should run: bytes that a token moves, divided by what disk and memory deliver.

A model, not a measurement. Reads and computing overlap, so a token takes as long as the slower of the two:
time = max(missed bytes / disk, bytes of trunk and experts / memory or kernels). Caches, growing contexts and the
system's other work are left out, so that every figure is a ceiling.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..layout.reader import Pack

Limit = Literal["disk", "memory bandwidth", "compute"]
GB = 1e9

# Flash-MoE's paper: least-recently-used slots of each layer, 512 experts, K = 4. Slots per layer in units of K, and the
# share of wanted experts that were in one; the first point is ours. Nobody has published such a curve for K = 10.
MEASURED_SLOTS_PER_K = (0.0, 4.0, 8.0, 16.0, 32.0)
MEASURED_HITS = (0.0, 0.49, 0.59, 0.68, 0.71)

UNIFORM = "uniform routing (worst case)"
LOCALITY = "the locality that a reference system measured on the 397B model at K = 4"


@dataclass(frozen=True)
class Demand:
    """Bytes that one decoded token moves: `trunk` from memory, `experts` records from memory or disk.

    `layers`, `experts_per_layer` and `experts_per_token` are the routing's sizes.
    """

    trunk: int
    experts: int
    layers: int
    experts_per_layer: int
    experts_per_token: int

    @classmethod
    def of(cls, pack: Pack, experts_per_token: int) -> "Demand":
        """A pack's demand with K experts per token."""
        experts = experts_per_token * sum(record.stride for record in pack.records)
        model = pack.model
        return cls(trunk_read(pack), experts, model.num_layers, model.num_experts, experts_per_token)

    @property
    def all_experts(self) -> float:
        """Bytes of every record."""
        return self.experts / self.experts_per_token * self.experts_per_layer


@dataclass(frozen=True)
class Rates:
    """What a machine delivers, in GB/s (10^9 bytes): random records, all cores reading memory, the expert kernels.

    None where it is not known: then it does not limit.
    """

    disk: float | None
    memory: float | None
    kernels: float | None = None


@dataclass(frozen=True)
class Forecast:
    """Decoding under one assumption about routing. Seconds are per token; `hit_rate` of the wanted experts."""

    assumption: str
    hit_rate: float
    bytes_missed: float
    disk_seconds: float
    memory_seconds: float
    compute_seconds: float
    tokens_per_second: float | None
    limit: Limit | None


def forecasts(demand: Demand, slots: int, rates: Rates) -> tuple[Forecast, Forecast]:
    """Decoding in the worst case, and with the locality that a trained model showed."""
    uniform, local = uniform_hits(demand, slots), local_hits(demand, slots)
    return _forecast(UNIFORM, demand, uniform, rates), _forecast(LOCALITY, demand, local, rates)


def uniform_hits(demand: Demand, slots: int) -> float:
    """The share of wanted experts in slots if all are equally likely; none where one token's do not fit."""
    per_layer = slots / demand.layers
    return min(1.0, per_layer / demand.experts_per_layer) if per_layer >= demand.experts_per_token else 0.0


def local_hits(demand: Demand, slots: int) -> float:
    """The same from the measured curve, by slots per layer and K; never below the uniform one."""
    uniform = uniform_hits(demand, slots)
    measured = np.interp(slots / demand.layers / demand.experts_per_token, MEASURED_SLOTS_PER_K, MEASURED_HITS)
    return max(uniform, float(measured)) if uniform else 0.0


def prefill_ceiling(demand: Demand, slots: int, chunk: int, disk: float) -> float | None:
    """Prompt tokens per second that a disk of so many GB/s allows in chunks of `chunk` tokens.

    Each chunk reads each record that it needs once, if no slot holds it: of E experts of a layer, uniform routing of n
    tokens needs E (1 - (1 - K/E)^n). None when all are in slots, so that nothing is read.
    """
    needed = 1 - (1 - demand.experts_per_token / demand.experts_per_layer) ** chunk
    missing = max(0.0, 1 - slots / (demand.layers * demand.experts_per_layer))
    read = needed * missing * demand.all_experts
    return chunk * disk * GB / read if read else None


def trunk_read(pack: Pack) -> int:
    """Bytes of the trunk that one token reads: all but the table of embeddings, of which it reads one row.

    A table that is the head too is read whole.
    """
    entries = pack.trunk.entries.values()
    table = [entry.size for entry in entries if entry.name.startswith("model.embed_tokens.")]
    skipped = 0 if pack.model.tie_word_embeddings else sum(table) * (1 - 1 / pack.model.vocab_size)
    return sum(entry.size for entry in entries) - round(skipped)


def _forecast(assumption: str, demand: Demand, hit_rate: float, rates: Rates) -> Forecast:
    missed = demand.experts * (1 - hit_rate)
    disk, memory = _seconds(missed, rates.disk), _seconds(demand.trunk + demand.experts, rates.memory)
    kernels = _seconds(demand.experts, rates.kernels)
    compute = kernels + _seconds(demand.trunk, rates.memory) if kernels else 0.0
    slowest = max(disk, memory, compute)
    return Forecast(
        assumption=assumption,
        hit_rate=hit_rate,
        bytes_missed=missed,
        disk_seconds=disk,
        memory_seconds=memory,
        compute_seconds=compute,
        tokens_per_second=1 / slowest if slowest else None,
        limit=_limit({"disk": disk, "memory bandwidth": memory, "compute": compute}),
    )


def _limit(times: Mapping[Limit, float]) -> Limit | None:
    """What takes longest; memory bandwidth when computing takes no longer than reading what it computes with."""
    slowest = max(times, key=lambda each: times[each])
    return slowest if times[slowest] else None


def _seconds(size: float, gigabytes_per_second: float | None) -> float:
    return size / (gigabytes_per_second * GB) if gigabytes_per_second else 0.0
