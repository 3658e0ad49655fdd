"""Second moments of activations: sums of x x^T over rows x, gathered chunk by chunk.

A chunk's product is one float32 matrix product, by BLAS or by torch on a GPU; chunks are added up in float64. With one
BLAS thread the sums are the same in every run on one machine, not across machines: whatever is made from them is a file
with a digest.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Sums: TypeAlias = NDArray[np.float64]

CHUNK = 1024  # rows of one float32 product: few enough that its rounding is far below the sampling error
DEVICES = ("auto", "cpu", "cuda")


class Accumulator(Protocol):
    """Adds up x x^T over rows of one width."""

    def add(self, rows: Floats) -> None:
        """Add rows [n, cols]."""

    def total(self) -> Sums:
        """The sum so far, float64 [cols, cols], symmetric; valid until more is added."""

    def clear(self) -> None:
        """Begin again at zero."""


MakeAccumulator: TypeAlias = Callable[[int], Accumulator]  # given the number of columns


class NumpyAccumulator:
    """An Accumulator in memory, 8 cols^2 bytes, and half of that while adding."""

    def __init__(self, cols: int) -> None:
        self._sum = np.zeros((cols, cols))

    def add(self, rows: Floats) -> None:
        """See Accumulator.add."""
        for first in range(0, len(rows), CHUNK):
            chunk = rows[first : first + CHUNK]
            self._sum += chunk.T @ chunk

    def total(self) -> Sums:
        """See Accumulator.total."""
        return self._sum

    def clear(self) -> None:
        """See Accumulator.clear."""
        self._sum.fill(0)


class TorchAccumulator:
    """An Accumulator on a device of torch, in its memory; float32 products without TF32, which torch's default is."""

    def __init__(self, cols: int, torch: Any, device: str) -> None:
        self._torch, self._device = torch, device
        self._sum = torch.zeros((cols, cols), dtype=torch.float64, device=device)

    def add(self, rows: Floats) -> None:
        """See Accumulator.add."""
        moved = self._torch.from_numpy(np.ascontiguousarray(rows)).to(self._device)
        for first in range(0, len(rows), CHUNK):
            chunk = moved[first : first + CHUNK]
            self._sum += chunk.T @ chunk

    def total(self) -> Sums:
        """See Accumulator.total."""
        symmetric = (self._sum + self._sum.T) / 2  # a GPU's product need not be so to the last bit
        total: Sums = symmetric.cpu().numpy()
        return total

    def clear(self) -> None:
        """See Accumulator.clear."""
        self._sum.zero_()


def choose_device(wanted: str) -> str:
    """ "cpu" or "cuda" for one of DEVICES; "auto" is the GPU if there is one and torch, which is optional, can use it.

    Raises ValueError if "cuda" is wanted and cannot be had.
    """
    if wanted not in DEVICES:
        raise ValueError(f"no device is called {wanted!r}; there are {', '.join(DEVICES)}")
    if wanted == "cpu":
        return wanted
    found = _torch()
    if found is not None and found.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise ValueError("there is no GPU that torch can use; install torch with CUDA, or use the cpu")
    return "cpu"


def accumulators(device: str) -> MakeAccumulator:
    """What makes accumulators on a device that `choose_device` gave."""
    if device == "cpu":
        return NumpyAccumulator
    torch = _torch()
    return lambda cols: TorchAccumulator(cols, torch, device)


def _torch() -> Any:
    try:
        return import_module("torch")  # by its name: neither starting nor type checking shall need it
    except ImportError:
        return None
