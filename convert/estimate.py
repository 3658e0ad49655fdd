"""How long a build may take: the quantizers' speed is measured here, for milliseconds, on made-up weights.

The disks' speed is tried for a moment too. Quantizing and the disks work at the same time, so the slower one counts.
An estimate, not a promise.
"""

import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..layout.formats import AffineFormat
from ..quantize.calibration import InputStatistics
from ..quantize.methods import quantize
from .diskspeed import reading_rate, writing_rate
from .plan import Packing
from .recipe import TRUNK_METHOD, Coding
from .tensors import Weights, format_of

SAMPLE_ROWS = 32
SAMPLE_COLUMNS = 2048
REPEATS = 3
SEED = 20260

Kind: TypeAlias = tuple[AffineFormat | None, Coding]  # from which codes (None: floats), and to what


@dataclass(frozen=True)
class Estimate:
    """Seconds of quantizing on `jobs` threads, and of reading and writing; None as a rate: not needed or not known."""

    jobs: int
    expert_weights_per_second: float | None  # of one thread
    quantizing_seconds: float
    reading_rate: float  # bytes per second
    writing_rate: float | None
    disk_seconds: float

    @property
    def seconds(self) -> float:
        """How long the build may take."""
        return max(self.quantizing_seconds, self.disk_seconds)


def estimate(packing: Packing, jobs: int, folder: Path) -> Estimate:
    """Measure the quantizers, the checkpoint's disk and the disk of `folder`, and scale up to the packing."""
    rate, quantizing = _quantizing(packing)
    files, left_out = packing.source.checkpoint.files, packing.source.left_out
    reading = reading_rate(max(files, key=lambda file: file.size).path)
    writing = writing_rate(folder, packing.plan.total_bytes)
    disk = (sum(file.size for file in files) - sum(part.size for part in left_out)) / max(reading, 1.0)
    disk += packing.plan.total_bytes / writing if writing else 0.0
    return Estimate(jobs, rate, quantizing / jobs, reading, writing, disk)


def _quantizing(packing: Packing) -> tuple[float | None, float]:
    """Expert weights per second of one thread, and the seconds that one thread would take for everything."""
    experts, trunk = _recoded_experts(packing), _recoded_trunk(packing)
    rates = {kind: measure(*kind) for kind in experts | trunk}
    of_experts = sum(count / rates[kind] for kind, count in experts.items())
    of_trunk = sum(count / rates[kind] for kind, count in trunk.items())
    return experts.total() / of_experts if experts else None, of_experts + of_trunk


def _recoded_experts(packing: Packing) -> Counter[Kind]:
    """How many of the experts' weights are quantized from what to what."""
    found: Counter[Kind] = Counter()
    for encoding, coding in packing.recoded:
        found[format_of(encoding), coding] += packing.projection_weights
    return found


def _recoded_trunk(packing: Packing) -> Counter[Kind]:
    """The same of the trunk's, where one recipe gives several formats."""
    found: Counter[Kind] = Counter()
    for item in packing.trunk:
        if isinstance(item.target, AffineFormat):
            kind = format_of(item.entry.encoding), Coding(item.target, TRUNK_METHOD)
            found[kind] += math.prod(item.entry.tensor.shape)
    return found


def measure(stored: AffineFormat | None, target: Coding) -> float:
    """Weights per second that one thread quantizes to `target` from `stored`, or from floats; the best of a few."""
    sample = _sample(stored)
    best = min(_seconds(sample, target) for _ in range(REPEATS))
    return SAMPLE_ROWS * SAMPLE_COLUMNS / best


def _seconds(sample: Weights, target: Coding) -> float:
    statistics = _uninformed(SAMPLE_COLUMNS)
    start = time.perf_counter()
    quantize(sample, target.format, target.method, None, statistics)
    return max(time.perf_counter() - start, 1e-9)


def _sample(stored: AffineFormat | None) -> Weights:
    weights = np.random.default_rng(SEED).standard_normal((SAMPLE_ROWS, SAMPLE_COLUMNS), np.float32)
    return quantize(weights, stored, "minmax") if stored else weights


def _uninformed(cols: int) -> InputStatistics:
    """Statistics that say nothing, for methods that need some."""
    nothing = np.eye(cols, dtype=np.float32)
    return InputStatistics(np.ones(cols, np.float32), nothing, nothing)
