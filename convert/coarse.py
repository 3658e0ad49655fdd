"""Coarse experts: matrices as the format of fewest bits would leave them, for measuring how much that matters."""

import numpy as np

from ..layout.formats import Format, bits_per_weight
from ..layout.matrix import StoredMatrix
from ..layout.plan import expert_shape
from ..layout.record import PROJECTIONS
from ..manifests.errors import UsageError
from ..manifests.schema import Model
from ..quantize.affine import AffineMatrix, dequantize
from ..quantize.methods import NonFiniteWeightError, quantize
from .finite import not_finite
from .matrices import as_quantized
from .recipe import DEFAULT_METHOD, fitting
from .tensors import Weights
from .weighing import CANDIDATES


def coarsest(model: Model) -> Format:
    """Of the formats among which recipes are chosen, the one of fewest bits. Raises UsageError if none fits."""
    shape = expert_shape(model)
    fits = [format_ for format_ in CANDIDATES if format_ in fitting(shape)]
    if not fits:
        raise UsageError("no format among which a recipe is chosen fits this model")
    return min(fits, key=lambda format_: sum(bits_per_weight(format_, *shape.of(name)) for name in PROJECTIONS))


def coarsened(matrix: StoredMatrix, format: Format) -> StoredMatrix:
    """What is left of a matrix, floats or affine codes, in `format`: float32 weights.

    Raises CorruptInputError if a weight is not finite.
    """
    try:
        return StoredMatrix(dequantize(quantize(_weights(matrix), format, DEFAULT_METHOD)))
    except NonFiniteWeightError:
        raise not_finite("an expert of the checkpoint") from None


def _weights(matrix: StoredMatrix) -> Weights:
    if matrix.format is None:
        return np.asarray(matrix.weight)
    codes = as_quantized(matrix)
    assert isinstance(codes, AffineMatrix)
    return codes
