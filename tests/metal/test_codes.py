"""Every format's weights as kernels read them are the dequantized ones, bit for bit where only one rounding is made."""

import numpy as np
import pytest
from metal.running import Kernel
from metal.stored import KINDS, Weights, random_matrix
from oracle import dense

from moepack.layout.formats import Format, GridFormat
from moepack.runtime.backends.metal.library import matrix_type
from moepack.runtime.backends.metal.sources import library_source

KERNEL = """
kernel void decode_{index}(device const uchar* weights [[buffer(0)]], constant Matrix& m [[buffer(1)]],
                           device float* to [[buffer(2)]], uint2 at [[threadgroup_position_in_grid]],
                           uint lane [[thread_index_in_simdgroup]]) {{
  const Parts parts = parts_of(weights, m);
  const uint piece = at.x * LANES + lane;
  if (piece * PIECE >= m.cols) return;
  float values[PIECE];
  {type}::weights(parts, at.y, piece, values);
  for (uint i = 0; i < PIECE && piece * PIECE + i < m.cols; ++i)
    to[at.y * m.cols + piece * PIECE + i] = values[i] * {type}::scale(parts, at.y);
}}
"""


def source() -> str:
    """One library with a kernel for every format."""
    kernels = [KERNEL.format(index=i, type=matrix_type(*kind)) for i, kind in enumerate(KINDS)]
    return library_source("codes.h", {}) + "".join(kernels)


@pytest.fixture(scope="module")
def text() -> str:
    return source()


@pytest.mark.parametrize(("format", "dtype"), KINDS, ids=[matrix_type(*kind) for kind in KINDS])
def test_weights_are_the_dequantized_ones(text: str, format: Format | None, dtype: str) -> None:
    cols = 41 if format is None else 5 * format.divisor if format.divisor > 32 else 544
    stored = random_matrix(np.random.default_rng(cols), 5, cols, format, dtype)
    if isinstance(format, GridFormat):
        stored.grids.reshape(-1)[:256] = np.arange(min(256, stored.grids.size))  # every grid there is
    weights = Weights()
    matrix = weights.put(stored)
    decode = Kernel(f"decode_{KINDS.index((format, dtype))}", text, threads=32)
    (got,) = decode((2, 5, 1), weights.buffer, matrix.packed, np.zeros((5, cols), np.float32))
    wanted = dense(stored)
    if dtype == "f32" and format is not None:  # code * scale rounds, and need not round if it is fused with the sum
        assert np.abs(got - wanted).max() <= 1e-6 * np.abs(wanted).max()
    else:
        assert np.array_equal(got, wanted)
