"""Rotary embedding: how far a position turns each pair of dimensions, the same on every backend."""

from functools import cache

import numpy as np

from .base import Floats


@cache
def frequencies(dims: int, theta: float) -> Floats:
    """theta^(-2i / dims), float32 [dims / 2], bit for bit as transformers has them: powers rounded once, then 1 / x."""
    exponents = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    powers: Floats = np.power(np.float64(theta), exponents, dtype=np.float64).astype(np.float32)
    return np.float32(1) / powers
