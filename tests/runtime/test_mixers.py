"""Attention and the gated delta rule against numpy in float64, and the same bits however the work is divided."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from kernel_sets import agree, saved_on_every_set
from mixer_reference import attended, delta_rule
from mixers import Attention, Delta, parts
from reference import sigmoid

from moepack.runtime import _native

THREADS = (1, 2, 3)


def close(got: np.ndarray, wanted: np.ndarray, tolerance: float) -> bool:
    """Within `tolerance` of the largest value."""
    return bool(np.abs(got - wanted).max() <= tolerance * max(1.0, np.abs(wanted).max()))


SHAPES = [
    (4, 2, 32, 8),
    (3, 1, 24, 6),
    (2, 2, 80, 0),
    (8, 1, 64, 64),
    (32, 2, 16, 4),  # a tile is one token
    (20, 1, 33, 2),  # a tile ends inside a token
    (5, 5, 1, 0),
    (6, 2, 260, 100),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_of_any_shape(shape: tuple[int, int, int, int]) -> None:
    case = Attention(*shape, tokens=51)
    together = case.run(2, parts(51, 51))
    assert close(together, attended(case, range(51)), 5e-6)
    for threads, chunk in product(THREADS, (51, 16, 5, 1)):
        assert np.array_equal(case.run(threads, parts(51, chunk)), together)


@pytest.mark.parametrize("shape", [(4, 1, 16, 4), (16, 1, 8, 8), (3, 3, 20, 0)])
def test_attention_across_blocks(shape: tuple[int, int, int, int]) -> None:
    """Blocks are 256 positions: chunks end before, at and after their boundaries, and a tile's tokens lie in two."""
    case = Attention(*shape, tokens=530)
    together = case.run(1, parts(530, 530))
    for tokens in (range(250, 262), range(508, 530)):
        assert close(together[tokens.start : tokens.stop], attended(case, tokens), 5e-6)
    for threads, chunk in product(THREADS, (256, 255, 97, 7)):
        assert np.array_equal(case.run(threads, parts(530, chunk)), together)
    one_by_one = [slice(0, 250), *(slice(t, t + 1) for t in range(250, 262)), slice(262, 511), slice(511, 512)]
    for threads in THREADS:
        assert np.array_equal(case.run(threads, [*one_by_one, slice(512, 530)]), together)


def test_many_blocks_are_joined_a_part_at_a_time() -> None:
    """More blocks than partial results are kept of, so that one token's are joined in several rounds."""
    case = Attention(2, 1, 4, 2, tokens=64 * 256 + 300)
    chunks = [slice(0, case.tokens - 1), slice(case.tokens - 1, case.tokens)]
    results = [case.run(threads, chunks)[-1] for threads in THREADS]
    assert close(results[0], attended(case, range(case.tokens - 1, case.tokens))[0], 5e-6)
    assert all(np.array_equal(result, results[0]) for result in results)
    assert np.array_equal(
        case.run(2, [slice(0, case.tokens - 40), slice(case.tokens - 40, case.tokens)])[-1], results[0]
    )


def test_sharp_attention_does_not_overflow() -> None:
    case = Attention(4, 2, 32, 8, tokens=300, sharpness=30.0)
    got = case.run(2, parts(300, 100))
    assert close(got[280:], attended(case, range(280, 300)), 2e-3)  # scores of thousands, in float32
    assert np.isfinite(got).all()


def test_one_position_gets_its_own_value() -> None:
    case = Attention(4, 2, 32, 8, tokens=1)
    gate = case.query_gate.reshape(4, 64)[:, 32:].astype(float)
    value = np.repeat(case.value.reshape(2, 32).astype(float), 2, 0)
    assert close(case.run(2, parts(1, 1)), (value * sigmoid(gate)).reshape(1, -1), 1e-6)


def test_not_a_number_is_not_hidden_by_attention() -> None:
    case = Attention(4, 2, 32, 8, tokens=30)
    case.key[3, 5] = np.nan
    got = case.run(2, parts(30, 30)).reshape(30, 4, 32)
    assert np.isnan(got[3:, :2]).all()
    assert np.isfinite(got[:, 2:]).all()


def test_nothing_of_later_tokens_is_seen() -> None:
    """Not even the smallest share of a large value, in a block or in one that a tile's first tokens do not reach."""
    case = Attention(2, 1, 16, 4, tokens=260)
    for first in (10, 256):
        case.value[:first], case.value[first:] = 0, 1e30
        got = case.run(2, [slice(0, first - 3), slice(first - 3, case.tokens)])
        assert not got[:first].any()
        assert got[first].all()


DELTAS = [
    (2, 4, 32, 32, 4, 19),
    (1, 3, 24, 40, 2, 19),
    (2, 2, 128, 80, 4, 19),
    (1, 1, 1, 1, 1, 9),
    (3, 15, 17, 33, 3, 150),  # many heads a thread; longer than a piece
    (2, 4, 16, 64, 4, 300),
]


@pytest.mark.parametrize("shape", DELTAS)
def test_delta_rule(shape: tuple[int, int, int, int, int, int]) -> None:
    case = Delta(*shape)
    together = case.run(1, parts(case.tokens, case.tokens))
    out, memory = delta_rule(case)
    assert close(together[0], out, 2e-5)
    assert close(together[1], memory, 2e-5)
    assert np.array_equal(together[2], case.mixed[case.tokens - case.kernel + 1 :])
    for threads, chunk in product(THREADS, (case.tokens, 128, 7, 2, 1)):
        again = case.run(threads, parts(case.tokens, chunk))
        assert all(np.array_equal(got, wanted) for got, wanted in zip(again, together, strict=True))


MIXED = """
import numpy as np
from mixers import Attention, Delta, parts
from moepack.runtime import _native
attention, delta = Attention(20, 1, 33, 2, tokens=300), Delta(1, 3, 24, 40, 4, tokens=60)
np.savez(sys.argv[1], attention.run(2, parts(300, 150)), *delta.run(2, parts(60, 60)))
print(_native.instruction_set())
"""


def test_every_instruction_set_is_right_and_those_with_fused_multiply_add_agree_exactly(tmp_path: Path) -> None:
    results = saved_on_every_set(MIXED, tmp_path)
    attention, (out, memory) = Attention(20, 1, 33, 2, tokens=300), delta_rule(Delta(1, 3, 24, 40, 4, tokens=60))
    wanted = (attended(attention, range(290, 300)), out, memory)
    assert _native.instruction_set() in results
    for got in results.values():
        assert all(close(a, b, 2e-5) for a, b in zip((got[0][290:], got[1], got[2]), wanted, strict=True))
    assert agree(results)
