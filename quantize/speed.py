"""How fast the quantizers are: weights per second of one thread, the median of several runs, per method and source.

Run as `python -m moepack.quantize.speed`.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter

import ml_dtypes
import numpy as np

from ..layout.formats import AffineFormat
from .affine import AffineMatrix, dequantize
from .methods import METHODS, instruction_set, quantize

ROWS, COLS, RUNS = 2048, 4096, 7
TARGET = AffineFormat(2, 64)


def main() -> None:
    """Print a table: source, operation, million weights per second."""
    print(f"{ROWS} x {COLS} weights, one thread, {instruction_set()}, to {TARGET.name}; million weights/s")
    out = AffineMatrix.empty(ROWS, COLS, TARGET)
    for name, weights in _sources().items():
        for method in METHODS:
            print(f"{name:12} {method:10} {_rate(partial(quantize, weights, TARGET, method, out)):7.0f}")
    print(f"{TARGET.name:12} {'dequantize':10} {_rate(partial(dequantize, out)):7.0f}")


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
