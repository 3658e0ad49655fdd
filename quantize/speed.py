"""How fast the quantizers are: weights per second of one thread, the median of several runs, per method and source.

Run as `python -m moepack.quantize.speed`.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter

import ml_dtypes
import numpy as np

from ..layout.formats import GRID_FORMATS, AffineFormat, Format, GridFormat, parse
from .affine import AffineMatrix, dequantize
from .calibration import InputStatistics
from .methods import instruction_set, quantize

ROWS, COLS, RUNS = 1024, 4096, 5
_STATISTICS = InputStatistics(np.linspace(1, 8, COLS, dtype=np.float32))
TARGETS = ("affine2-g64", "affine3-g64", *(format_.name for format_ in GRID_FORMATS))


def main() -> None:
    """Print a table: source, target, operation, million weights per second."""
    print(f"{ROWS} x {COLS} weights, one thread, {instruction_set()}; million weights/s")
    for source, weights in _sources().items():
        for target in map(parse, TARGETS):
            out = quantize(weights, target, "mse")
            for method in _methods(target):
                run = partial(quantize, weights, target, method, out, _STATISTICS)
                print(f"{source:12} to {target.name:13} {method:10} {_rate(run):7.0f}")
            print(f"{'':12}    {target.name:13} {'dequantize':10} {_rate(partial(dequantize, out)):7.0f}")


def _methods(target: Format) -> list[str]:
    """Those that are one search."""
    return ["mse", "imatrix"] if isinstance(target, GridFormat) else ["minmax", "mse", "imatrix"]


def _sources() -> dict[str, np.ndarray | AffineMatrix]:
    """The same weights as float32, bfloat16 and 4-bit codes."""
    weights = np.random.default_rng(0).standard_normal((ROWS, COLS)).astype(np.float32)
    four_bit = quantize(weights, AffineFormat(4, 64), "minmax")
    return {"float32": weights, "bfloat16": weights.astype(ml_dtypes.bfloat16), four_bit.format.name: four_bit}


def _rate(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(RUNS):
        start = perf_counter()
        run()
        seconds.append(perf_counter() - start)
    return ROWS * COLS / median(seconds) / 1e6


if __name__ == "__main__":
    main()
