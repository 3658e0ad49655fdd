"""The error measure: how far a quantized matrix is from the weights it stands for, in float64."""

import math

import numpy as np

from .affine import dequantize
from .grids import Matrix


def relative_squared_error(weights: np.ndarray | Matrix, quantized: Matrix) -> float:
    """sum (w - w')^2 / sum w^2 over a matrix: 0 is exact. Of a zero matrix: 0 if reproduced, else infinity."""
    wanted = _float64(weights)
    error = float(np.square(wanted - _float64(quantized)).sum())
    power = float(np.square(wanted).sum())
    return error / power if power else (math.inf if error else 0.0)


def _float64(weights: np.ndarray | Matrix) -> np.ndarray:
    return (weights if isinstance(weights, np.ndarray) else dequantize(weights)).astype(np.float64)
