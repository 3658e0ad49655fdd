"""Products of stored matrices with one token's activations, against float64."""

import struct

import numpy as np
import pytest
from matrices import floats
from metal.running import Kernel, ceil_div, close
from metal.stored import Weights, dense, random_matrix
from reference import silu

from moepack.layout.formats import Format, parse
from moepack.layout.matrix import StoredMatrix
from moepack.runtime.backends.metal.library import matrix_type

ROWS_AT_ONCE = 32
KINDS: list[tuple[Format | None, str, int]] = [  # the last: columns; below, at and past a tile, and past what is staged
    (parse("affine2-g64"), "bf16", 2112),
    (parse("affine4-g32"), "f16", 96),
    (parse("affine3-g128"), "f32", 640),
    (parse("book2-g8"), "bf16", 544),
    (None, "bf16", 2055),
]
IDS = [f"{matrix_type(format, dtype)}-{cols}" for format, dtype, cols in KINDS]


def product(matrix: bytes, out: int = 0) -> bytes:
    """struct Product of matvec.metal."""
    return matrix + struct.pack("<Q", out)


def kernel(name: str, format: Format | None, dtype: str) -> Kernel:
    return Kernel("matvec.metal", name, {"MATRIX": matrix_type(format, dtype)})


@pytest.mark.parametrize(("format", "dtype", "cols"), KINDS, ids=IDS)
def test_products_of_one_input_with_several_matrices(format: Format | None, dtype: str, cols: int) -> None:
    random, tokens, tall = np.random.default_rng(cols), 2, (37, 1, 71)
    stored = [random_matrix(random, rows, cols, format, dtype) for rows in tall]
    weights, x = Weights(), floats(random, tokens, cols)
    starts = np.cumsum([3, *(tokens * rows for rows in tall)])
    products = b"".join(product(weights.put(one), start) for one, start in zip(stored, starts[:-1], strict=True))
    groups = (ceil_div(max(tall), ROWS_AT_ONCE), tokens, len(tall))
    before = floats(random, int(starts[-1]))
    (got,) = kernel("matvec", format, dtype)(groups, weights.buffer, x, before, products)
    (added,) = kernel("matvec_add", format, dtype)(groups, weights.buffer, x, before, products)
    wanted = np.concatenate([(x.astype(float) @ dense(one).T.astype(float)).reshape(-1) for one in stored])
    assert np.array_equal(got[:3], before[:3])
    assert close(got[3:], wanted)
    assert close(added[3:], before[3:] + wanted)


@pytest.mark.parametrize(("format", "dtype", "cols"), KINDS[1:], ids=IDS[1:])
def test_gated_products(format: Format | None, dtype: str, cols: int) -> None:
    random, rows, tokens = np.random.default_rng(cols), 45, 2
    gate, up = (random_matrix(random, rows, cols, format, dtype) for _ in range(2))
    weights, x = Weights(), floats(random, tokens, cols, scale=0.3)
    products = product(weights.put(gate)) + product(weights.put(up))
    run, out = kernel("matvec_gated", format, dtype), np.zeros((tokens, rows), np.float32)
    (got,) = run((ceil_div(rows, ROWS_AT_ONCE), tokens), weights.buffer, x, out, products)
    gates, ups = (x.astype(float) @ dense(one).T.astype(float) for one in (gate, up))
    assert close(got, silu(gates) * ups)


@pytest.mark.parametrize("name", ["affine2-g64", "book3-g16"])
def test_a_matrix_past_four_gigabytes(name: str) -> None:
    """Offsets are 64 bits wide. The gap is never written, so it occupies no memory."""
    random, format_, gap = np.random.default_rng(0), parse(name), 5_000_000_000
    stored, x, weights = random_matrix(random, 9, 128, format_, "bf16"), floats(random, 1, 128), Weights()
    places = struct.unpack("<4Q2I", weights.put(stored))
    buffer = np.zeros(gap + len(weights.buffer), np.uint8)
    buffer[gap:] = weights.buffer
    moved = product(struct.pack("<4Q2I", *(place + gap for place in places[:4]), *places[4:]))
    (got,) = kernel("matvec", format_, "bf16")((1, 1, 1), buffer, x, np.zeros(9, np.float32), moved)
    assert close(got, x.astype(float) @ dense(stored).T.astype(float))


def test_what_is_not_a_number_stays_visible() -> None:
    one = StoredMatrix(np.ones((1, 40), np.float32))
    weights, x = Weights(), np.ones((1, 40), np.float32)
    matrix = product(weights.put(one))
    for bad in (np.nan, np.inf):
        x[0, 33] = bad
        (got,) = kernel("matvec", None, "f32")((1, 1, 1), weights.buffer, x, np.zeros(1, np.float32), matrix)
        assert np.array_equal(got, [bad], equal_nan=True)
