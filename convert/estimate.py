"""How long a build may take: the quantizers' speed is measured here, for milliseconds, on made-up weights.

The disks' speed is tried for a moment too. Quantizing and the disks work at the same time, so the slower one counts.
An estimate, not a promise.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..layout.formats import AffineFormat
from ..quantize.affine import AffineMatrix
from ..quantize.methods import quantize
from .diskspeed import reading_rate, writing_rate
from .plan import Packing
from .recipe import TRUNK_METHOD
from .tensors import Encoding, Weights, format_of

SAMPLE_ROWS = 32
SAMPLE_GROUPS = 16
REPEATS = 3
SEED = 20260


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
    rate, seconds = None, 0.0
    if packing.recoded_expert_weights:
        encoding = packing.source.experts[0].encodings["gate"]
        rate = measure(encoding, packing.recipe.expert_format, packing.recipe.method)
        seconds = packing.recoded_expert_weights / rate
    if recoded := [item for item in packing.trunk if isinstance(item.target, AffineFormat)]:
        weights = sum(math.prod(item.entry.tensor.shape) for item in recoded)
        seconds += weights / measure(
            recoded[0].entry.encoding, AffineFormat.parse(packing.recipe.trunk_format), TRUNK_METHOD
        )
    return rate, seconds


def measure(encoding: Encoding, target: AffineFormat, method: str) -> float:
    """Weights per second that one thread quantizes from `encoding` to `target`; the best of a few tries."""
    sample = _sample(encoding, target)
    out = quantize(sample, target, method)
    best = min(_seconds(sample, target, method, out) for _ in range(REPEATS))
    return out.shape[0] * out.shape[1] / best


def _seconds(sample: Weights, target: AffineFormat, method: str, out: AffineMatrix) -> float:
    start = time.perf_counter()
    quantize(sample, target, method, out)
    return max(time.perf_counter() - start, 1e-9)


def _sample(encoding: Encoding, target: AffineFormat) -> Weights:
    cols = SAMPLE_GROUPS * max(128, target.group_size)
    weights = np.random.default_rng(SEED).standard_normal((SAMPLE_ROWS, cols), np.float32)
    stored = format_of(encoding)
    return quantize(weights, stored, "minmax") if stored else weights
