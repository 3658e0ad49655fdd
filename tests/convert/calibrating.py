"""Calibrating in tests: a text, and the command's steps without the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import Shape

from moepack.convert.calibration.collector import Collector
from moepack.convert.calibration.plan import CalibrationPlan, Options, plan_calibration
from moepack.convert.calibration.run import Advance, calibrate
from moepack.convert.checkpoint import Checkpoint
from moepack.convert.reference import Reference
from moepack.manifests.progress import Silent
from moepack.runtime.backends.cpu import CpuBackend
from moepack.runtime.corpus import Corpus
from moepack.runtime.sweep import Sweep

FEW_VISITS = Shape(hidden=96, experts=24, experts_per_token=2, intermediate=64, shared_intermediate=64, vocab=300)
WINDOWS = 20
WINDOW = 24
TEXT_DIGEST = "7" * 64


def windows_of(shape: Shape, seed: int = 1) -> Corpus:
    """Windows of unequal length over a few words, so that some experts are never visited."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, WINDOW + 1, WINDOWS)
    return Corpus.of([random.integers(0, 9, length).tolist() for length in lengths])


def calibrated(
    checkpoint: Path,
    target: Path,
    corpus: Corpus,
    *,
    around: Callable[[Advance], Advance] = lambda advance: advance,
    **options: Any,
) -> CalibrationPlan:
    """Calibrate; `around` may wrap the step that takes the states through a layer."""
    with Checkpoint.open(str(checkpoint)) as opened:
        chosen = Options(WINDOW, **options)
        plan = plan_calibration(opened, corpus.starts, corpus.sequences, TEXT_DIGEST, chosen, through=None)
        sweep = Sweep(Reference(opened), CpuBackend(2, exact=True))
        stream = sweep.embed(corpus)

        def advance(layer: int, observer: Collector) -> None:
            sweep.advance(layer, stream, observer=observer)

        calibrate(plan, opened, target, stream.rows, around(advance), Silent())
    return plan
