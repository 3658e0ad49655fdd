"""Random activations and stored matrices; light to import, for it also runs in subprocesses."""

from typing import Any

import ml_dtypes
import numpy as np
from packs import pack_codes

from moepack.layout.formats import AffineFormat, Format
from moepack.layout.matrix import StoredMatrix

FLOATS: dict[str, Any] = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}


def floats(random: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (random.normal(size=shape) * scale).astype(np.float32)


def coded(random: np.random.Generator, rows: int, cols: int, format: Format) -> StoredMatrix:
    """A matrix of random codes in `format`, its parameters in bf16."""
    if isinstance(format, AffineFormat):
        return affine(random, rows, cols, format)
    codes = pack_codes(random.integers(0, 2**format.bits, (rows, cols)), format.bits)
    grids = random.integers(0, 256, (rows, format.grid_bytes(cols)), dtype=np.uint8)
    scales = floats(random, rows, 1, scale=0.1 / float(format.table.std())).astype(FLOATS["bf16"])
    return StoredMatrix(codes, scales, format=format, grids=grids)


def affine(
    random: np.random.Generator, rows: int, cols: int, format: AffineFormat, dtype: Any = "bf16"
) -> StoredMatrix:
    codes = random.integers(0, 2**format.bits, (rows, cols))
    scales, biases = (floats(random, rows, format.groups(cols), scale=0.1).astype(FLOATS[dtype]) for _ in range(2))
    return StoredMatrix(pack_codes(codes, format.bits), scales, biases, format)


def highest(random: np.random.Generator, rows: int, cols: int, format: Format) -> StoredMatrix:
    """The same with the highest code everywhere."""
    stored = coded(random, rows, cols, format)
    stored.weight[...] = np.iinfo(stored.weight.dtype).max
    return stored
