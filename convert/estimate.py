"""How long a build may take: the quantizers' speed is measured here, for milliseconds, on made-up weights.

An estimate, not a promise: the disk is not measured, so reading and writing come on top where they are slower.
"""

import math
import time
from dataclasses import dataclass

import numpy as np

from ..layout.formats import AffineFormat
from ..quantize.affine import AffineMatrix
from ..quantize.methods import quantize
from .plan import Packing
from .recipe import TRUNK_METHOD
from .tensors import Affine, Encoding, Weights

SAMPLE_ROWS = 32
SAMPLE_GROUPS = 16
REPEATS = 3
SEED = 20260


@dataclass(frozen=True)
class Estimate:
    """Seconds of quantizing on `jobs` threads; None as a rate means that nothing is quantized anew."""

    jobs: int
    expert_weights_per_second: float | None  # of one thread
    seconds: float


def estimate(packing: Packing, jobs: int) -> Estimate:
    """Measure the quantizers on this machine and scale up to the packing."""
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
    return Estimate(jobs, rate, seconds / jobs)


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
    return quantize(weights, encoding.format, "minmax") if isinstance(encoding, Affine) else weights
