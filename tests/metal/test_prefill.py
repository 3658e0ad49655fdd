"""Products of stored matrices with many tokens' activations, straight, gathered and scattered, against float64."""

import numpy as np
import pytest
from matrices import floats
from metal.running import kernel
from metal.stored import Weights, random_matrix
from oracle import dense
from reference import close

from moepack.layout.formats import Format, parse
from moepack.runtime.backends.metal.launches import many_products_grid
from moepack.runtime.backends.metal.library import many_products, matrix_type

KINDS: list[tuple[Format | None, str, int, int]] = [  # the last two: columns, and blocks of eight tokens
    (parse("affine2-g64"), "bf16", 192, 4),
    (parse("affine8-g32"), "f16", 96, 1),
    (parse("book3-g8"), "bf16", 160, 2),
    (parse("affine2-g16s"), "bf16", 32, 3),
    (None, "bf16", 41, 2),
]
IDS = [f"{matrix_type(format, dtype)}-{cols}" for format, dtype, cols, _ in KINDS]


class Case:
    """A matrix of odd height, and more tokens than fill one threadgroup's share."""

    def __init__(self, format: Format | None, dtype: str, cols: int, blocks: int) -> None:
        self.random = random = np.random.default_rng(cols)
        self.count, self.rows = 8 * blocks + 3, 77
        stored, self._weights = random_matrix(random, self.rows, cols, format, dtype), Weights()
        self._batch = self._weights.put(stored).batch(self.count)
        self._build = many_products(matrix_type(format, dtype), blocks)
        self._grid = many_products_grid(self.rows, self.count, blocks)
        self.matrix = dense(stored).astype(float)

    def run(self, name: str, x: np.ndarray, y: np.ndarray, *more: np.ndarray) -> np.ndarray:
        return kernel(self._build, name)(self._grid, self._weights.buffer, x, y, self._batch, *more)[0]


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_products_of_many_tokens(kind: tuple[Format | None, str, int, int]) -> None:
    case = Case(*kind)
    x, y = floats(case.random, case.count, kind[2]), floats(case.random, case.count, case.rows)
    wanted = x @ case.matrix.T
    assert close(case.run("matmul", x, y), wanted)
    assert close(case.run("matmul_add", x, y), y + wanted)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_an_expert_sees_the_tokens_that_chose_it(kind: tuple[Format | None, str, int, int]) -> None:
    case = Case(*kind)
    random, count = case.random, case.count
    tokens = random.permutation(3 * count)[:count].astype(np.uint32)
    x, h = floats(random, 3 * count, kind[2]), floats(random, count, kind[2])
    gathered = case.run("matmul_gather", x, np.zeros((count, case.rows), np.float32), tokens)
    assert close(gathered, x[tokens] @ case.matrix.T)
    shares, before = random.random(count).astype(np.float32), floats(random, 3 * count, case.rows)
    wanted = before.astype(float)
    wanted[tokens] += shares[:, None] * (h @ case.matrix.T)
    got = case.run("matmul_scatter", h, before, tokens, shares)
    assert close(got, wanted)
    untouched = np.setdiff1d(np.arange(3 * count), tokens)
    assert np.array_equal(got[untouched], before[untouched])


def test_a_token_s_result_does_not_depend_on_those_beside_it() -> None:
    case = Case(parse("affine4-g64"), "bf16", 128, 2)
    x, y = floats(case.random, case.count, 128), np.zeros((case.count, case.rows), np.float32)
    together, mixed = case.run("matmul", x, y), case.random.permutation(case.count)
    assert np.array_equal(case.run("matmul", x[mixed], y), together[mixed])
