"""Stored matrices in one buffer, as the trunk lies in it, with the places that kernels are told."""

import numpy as np
from matrices import FLOATS, affine, coded, floats

from moepack.layout.formats import AFFINE_FORMATS, FORMATS, AffineFormat, Format
from moepack.layout.matrix import StoredMatrix
from moepack.runtime.backends.metal.launches import MatrixPlace

KINDS: list[tuple[Format | None, str]] = [
    *((format_, "bf16") for format_ in FORMATS),
    *((format_, dtype) for format_ in AFFINE_FORMATS for dtype in ("f16", "f32")),
    *((None, dtype) for dtype in FLOATS),
]


def random_matrix(random: np.random.Generator, rows: int, cols: int, format: Format | None, dtype: str) -> StoredMatrix:
    """A matrix of random codes with parameters of `dtype`, or of floats of `dtype`."""
    if format is None:
        return StoredMatrix(floats(random, rows, cols).astype(FLOATS[dtype]))
    return (
        affine(random, rows, cols, format, dtype)
        if isinstance(format, AffineFormat)
        else coded(random, rows, cols, format)
    )


class Weights:
    """A buffer that matrices are put into one after the other, each part where its elements are aligned, no more."""

    def __init__(self) -> None:
        self._bytes = bytearray(4)  # so that no matrix begins where the buffer does

    def put(self, stored: StoredMatrix) -> MatrixPlace:
        """Adds a matrix."""
        parts = (stored.weight, stored.scales, stored.biases, stored.grids)
        return MatrixPlace(*(self._part(part) for part in parts), *stored.shape)

    @property
    def buffer(self) -> np.ndarray:
        """Everything put in so far."""
        return np.frombuffer(bytes(self._bytes), np.uint8)

    def _part(self, part: np.ndarray | None) -> int:
        if part is None:
            return 0
        size = part.dtype.itemsize
        self._bytes += b"\xaa" * (-len(self._bytes) % size)
        place = len(self._bytes)
        self._bytes += part.tobytes()
        return place
