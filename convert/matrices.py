"""Reading matrices, whatever their encoding: rows of a trunk tensor, or one of an expert's three.

The one place that knows every encoding's reader; memory is what the rows need, never the whole tensor.
"""

import numpy as np

from ..layout.formats import AffineFormat
from ..layout.matrix import StoredMatrix
from ..layout.tensorfile import ARRAY_DTYPES
from ..quantize.affine import AffineMatrix
from ..quantize.grids import GridMatrix, Matrix
from . import fp8, gptq
from .checkpoint import Checkpoint
from .tensors import Affine, Encoding, Fp8, Plain, Scratch, Weights, read_affine


def read_rows(
    checkpoint: Checkpoint, encoding: Encoding, shape: tuple[int, ...], first: int, scratch: Scratch, key: str
) -> Weights:
    """Rows from `first` on of a tensor, as many as `shape` says, in arrays of `scratch` under `key`.

    Floats keep their dtype and affine codes their format; FP8 becomes float32, GPTQ codes an affine matrix or float32.
    Raises CorruptInputError naming the tensor if codes or scales are no numbers.
    """
    if isinstance(encoding, Plain):
        out = scratch.array(key, shape, ARRAY_DTYPES[encoding.dtype])
        checkpoint.read_into(encoding.stored, out, first)
        return out
    rows, cols = shape
    if isinstance(encoding, Affine):
        matrix = scratch.affine(key, (rows, cols), encoding.format, encoding.dtype)
        read_affine(checkpoint, encoding, matrix, first)
        return matrix
    if isinstance(encoding, Fp8):
        return fp8.read_rows(checkpoint, encoding, (rows, cols), first, scratch, key)
    return gptq.read_rows(checkpoint, encoding, (rows, cols), first, scratch, key)


def read_stacked(
    checkpoint: Checkpoint, encoding: Plain | Fp8, shape: tuple[int, int], index: int, scratch: Scratch, key: str
) -> np.ndarray:
    """Matrix `index` of a stack [matrices, *shape]; otherwise like `read_rows`."""
    if isinstance(encoding, Fp8):
        return fp8.read_stacked(checkpoint, encoding, shape, index, scratch, key)
    out = scratch.array(key, shape, ARRAY_DTYPES[encoding.dtype])
    checkpoint.read_into(encoding.stored, out, index)
    return out


def as_quantized(stored: StoredMatrix) -> Matrix:
    """Stored codes as quantizers know them: the same arrays. The matrix must have a format."""
    if isinstance(stored.format, AffineFormat):
        return AffineMatrix(stored.format, *stored.parts)
    assert stored.format is not None
    return GridMatrix(stored.format, *stored.parts)
