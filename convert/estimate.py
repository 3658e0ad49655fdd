"""How long a build may take: the quantizers' speed is measured here, for a moment, on made-up weights.

What a method does once for all rows, a Hessian and its factors, is timed apart and counted once for each expert's
inputs. The disks' speed is tried for a moment too. Quantizing and the disks work at the same time, so the slower one
counts. An estimate, not a promise.
"""

import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..layout.formats import AffineFormat
from ..layout.plan import expert_shape
from ..quantize.calibration import Halves, InputStatistics, Moments, input_statistics, triangle
from ..quantize.gptq import feedback_of
from ..quantize.methods import quantize
from .calibration.sections import GROUPS
from .calibration.statistics import BY_HESSIAN
from .diskspeed import reading_rate, writing_rate
from .plan import Packing
from .recipe import TRUNK_METHOD, Coding
from .tensors import Weights, format_of

SAMPLE_WEIGHTS = 65536
FEEDBACK_ROWS = 256  # fewer would not be worth passing over a Hessian's factor once, as a whole matrix's are
REPEATS = 3
SEED = 20260


@dataclass(frozen=True)
class Kind:
    """Weights to be quantized: from which codes (None: floats), to what, and in rows of how many inputs."""

    stored: AffineFormat | None
    coding: Coding
    cols: int


@dataclass(frozen=True)
class Inputs:
    """Inputs of an expert that a Hessian is made of, and whether correlations of that expert alone are known."""

    cols: int
    own: bool


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
    read = 2 * sum(file.size for file in files) - sum(part.size for part in left_out)  # the second time for its SHA-256
    disk = read / max(reading, 1.0)
    disk += packing.plan.total_bytes / writing if writing else 0.0
    return Estimate(jobs, rate, quantizing / jobs, reading, writing, disk)


def _quantizing(packing: Packing) -> tuple[float | None, float]:
    """Expert weights per second of one thread, and the seconds that one thread would take for everything."""
    experts, trunk, hessians = _recoded_experts(packing), _recoded_trunk(packing), _hessians(packing)
    prepared = {inputs: prepare(inputs) for inputs in hessians}
    known = {inputs.cols: statistics for inputs, (statistics, _) in prepared.items()}
    rates = {kind: measure(kind, known.get(kind.cols)) for kind in experts | trunk}
    of_experts = sum(count / rates[kind] for kind, count in experts.items())
    of_experts += sum(count * prepared[inputs][1] for inputs, count in hessians.items())
    of_trunk = sum(count / rates[kind] for kind, count in trunk.items())
    return experts.total() / of_experts if experts else None, of_experts + of_trunk


def _recoded_experts(packing: Packing) -> Counter[Kind]:
    """How many of the experts' weights are quantized from what to what."""
    found: Counter[Kind] = Counter()
    shape = expert_shape(packing.source.model)
    for recoded in packing.recoded:
        kind = Kind(format_of(recoded.encoding), recoded.coding, shape.of(recoded.projection)[1])
        found[kind] += packing.projection_weights
    return found


def _recoded_trunk(packing: Packing) -> Counter[Kind]:
    """The same of the trunk's, where one recipe gives several formats."""
    found: Counter[Kind] = Counter()
    for item in packing.trunk:
        if isinstance(item.target, AffineFormat):
            shape, coding = item.entry.tensor.shape, Coding(item.target, TRUNK_METHOD)
            found[Kind(format_of(item.entry.encoding), coding, shape[-1])] += math.prod(shape)
    return found


def _hessians(packing: Packing) -> Counter[Inputs]:
    """How many Hessians are made of which inputs: one for each expert, and gate and up share theirs."""
    by_hessian = (recoded for recoded in packing.recoded if recoded.coding.method in BY_HESSIAN)
    groups = {(recoded.layer, GROUPS[recoded.projection]): recoded.projection for recoded in by_hessian}
    own = packing.calibration.facts.shape.own if packing.calibration is not None else ()
    shape, found = expert_shape(packing.source.model), Counter[Inputs]()
    for (_, group), projection in groups.items():
        found[Inputs(shape.of(projection)[1], group in own)] += packing.source.model.num_experts
    return found


def prepare(inputs: Inputs) -> tuple[InputStatistics, float]:
    """Statistics that say nothing, with a Hessian that is factorised, and the seconds that took."""
    ones = np.ones(inputs.cols, np.float32)
    pool = Moments(1, ones, np.zeros(triangle(inputs.cols), np.int16))
    expert = pool if inputs.own else Moments(1, ones)
    start = time.perf_counter()
    statistics = input_statistics(Halves(expert, expert), Halves(pool, pool), hessians=True)
    feedback_of(statistics)
    return statistics, time.perf_counter() - start


def measure(kind: Kind, statistics: InputStatistics | None = None) -> float:
    """Weights per second that one thread quantizes, the best of a few; what `prepare` gives is not made anew."""
    rows = FEEDBACK_ROWS if kind.coding.method in BY_HESSIAN else max(1, SAMPLE_WEIGHTS // kind.cols)
    sample = _sample(kind.stored, (rows, kind.cols))
    known = statistics or InputStatistics(np.ones(kind.cols, np.float32))
    return rows * kind.cols / min(_seconds(sample, kind.coding, known) for _ in range(REPEATS))


def _seconds(sample: Weights, target: Coding, statistics: InputStatistics) -> float:
    start = time.perf_counter()
    quantize(sample, target.format, target.method, None, statistics)
    return max(time.perf_counter() - start, 1e-9)


def _sample(stored: AffineFormat | None, shape: tuple[int, int]) -> Weights:
    weights = np.random.default_rng(SEED).standard_normal(shape, np.float32)
    return quantize(weights, stored, "minmax") if stored else weights
