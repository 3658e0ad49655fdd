"""Products of stored matrices with one token's activations, against float64."""

from dataclasses import replace

import numpy as np
import pytest
from matrices import floats
from metal import standin
from metal.running import Kernel, kernel
from metal.stored import Weights, random_matrix
from oracle import dense
from reference import close, silu

from moepack.layout.formats import Format, parse
from moepack.layout.matrix import StoredMatrix
from moepack.runtime.backends.metal.launches import products_grid
from moepack.runtime.backends.metal.library import matrix_type, products

KINDS: list[tuple[Format | None, str, int]] = [  # the last: columns; below, at and past a tile, and past what is staged
    (parse("affine2-g64"), "bf16", 2112),
    (parse("affine4-g32"), "f16", 96),
    (parse("affine3-g128"), "f32", 640),
    (parse("book2-g8"), "bf16", 544),
    (parse("affine3-g16s"), "bf16", 576),
    (None, "bf16", 2055),
]
IDS = [f"{matrix_type(format, dtype)}-{cols}" for format, dtype, cols in KINDS]


def matvec(name: str, format: Format | None, dtype: str) -> Kernel:
    return kernel(products(matrix_type(format, dtype)), name)


@pytest.mark.parametrize(("format", "dtype", "cols"), KINDS, ids=IDS)
def test_products_of_one_input_with_several_matrices(format: Format | None, dtype: str, cols: int) -> None:
    random, tokens, tall = np.random.default_rng(cols), 2, (37, 1, 71)
    stored = [random_matrix(random, rows, cols, format, dtype) for rows in tall]
    weights, x = Weights(), floats(random, tokens, cols)
    starts = np.cumsum([3, *(tokens * rows for rows in tall)])
    places = b"".join(weights.put(one).product(start) for one, start in zip(stored, starts[:-1], strict=True))
    grid = products_grid(max(tall), tokens, len(tall))
    before = floats(random, int(starts[-1]))
    (got,) = matvec("matvec", format, dtype)(grid, weights.buffer, x, before, places)
    (added,) = matvec("matvec_add", format, dtype)(grid, weights.buffer, x, before, places)
    wanted = np.concatenate([(x.astype(float) @ dense(one).T.astype(float)).reshape(-1) for one in stored])
    assert np.array_equal(got[:3], before[:3])
    assert close(got[3:], wanted)
    assert close(added[3:], before[3:] + wanted)


@pytest.mark.parametrize(("format", "dtype", "cols"), KINDS[1:], ids=IDS[1:])
def test_gated_products(format: Format | None, dtype: str, cols: int) -> None:
    random, rows, tokens = np.random.default_rng(cols), 45, 2
    gate, up = (random_matrix(random, rows, cols, format, dtype) for _ in range(2))
    weights, x = Weights(), floats(random, tokens, cols, scale=0.3)
    places = weights.put(gate).product(0) + weights.put(up).product(0)
    run, out = matvec("matvec_gated", format, dtype), np.zeros((tokens, rows), np.float32)
    (got,) = run(products_grid(rows, tokens), weights.buffer, x, out, places)
    gates, ups = (x.astype(float) @ dense(one).T.astype(float) for one in (gate, up))
    assert close(got, silu(gates) * ups)


@pytest.mark.skipif(not standin.RUNS, reason="on a real device this takes 5 GB, which PyObjC may leak, again and again")
@pytest.mark.parametrize("name", ["affine2-g64", "book3-g16", "affine2-g32s"])
def test_a_matrix_past_four_gigabytes(name: str) -> None:
    """Offsets are 64 bits wide. The gap is never written, so it occupies no memory."""
    random, format_, gap = np.random.default_rng(0), parse(name), 5_000_000_000
    stored, x, weights = random_matrix(random, 9, 128, format_, "bf16"), floats(random, 1, 128), Weights()
    place = weights.put(stored)
    buffer = np.zeros(gap + len(weights.buffer), np.uint8)
    buffer[gap:] = weights.buffer
    parts = {part: getattr(place, part) + gap for part in ("weight", "scales", "biases", "grids")}
    moved = replace(place, **parts).product(0)
    (got,) = matvec("matvec", format_, "bf16")((1, 1, 1), buffer, x, np.zeros(9, np.float32), moved)
    assert close(got, x.astype(float) @ dense(stored).T.astype(float))


def test_what_is_not_a_number_stays_visible() -> None:
    one = StoredMatrix(np.ones((1, 40), np.float32))
    weights, x = Weights(), np.ones((1, 40), np.float32)
    matrix = weights.put(one).product(0)
    for bad in (np.nan, np.inf):
        x[0, 33] = bad
        (got,) = matvec("matvec", None, "f32")((1, 1, 1), weights.buffer, x, np.zeros(1, np.float32), matrix)
        assert np.array_equal(got, [bad], equal_nan=True)
