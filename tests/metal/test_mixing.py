"""Attention and Gated DeltaNet, one token or a chunk at a time, against float64."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from metal.running import kernel
from mixer_reference import attended, delta_rule
from mixers import EPS, THETA, Attention, Delta, parts
from reference import close, sigmoid

from moepack.manifests.schema import FullAttention, LinearAttention
from moepack.runtime.backends.metal.launches import (
    AttentionChunk,
    attention_grid,
    count,
    delta_norm_grid,
    gated_norm,
    groups_grid,
    rule_grid,
    threads_grid,
)
from moepack.runtime.backends.metal.library import attention, delta, plain


@dataclass
class MetalAttention:
    """Runs a case's tokens in chunks, each in `splits` parts of its positions."""

    case: Attention
    check: bool = True

    def __post_init__(self) -> None:
        case = self.case
        build = attention(FullAttention(case.heads, case.kv_heads, case.dim, case.rotary, THETA))
        launches = ("attention_prepare", "attention", "attention_join")
        self._prepare, self._attend, self._join = (kernel(build, name) for name in launches)
        shape = (case.tokens, case.kv_heads * case.dim)
        self._keys, self._values = (np.full(shape, np.nan, np.float32) for _ in range(2))

    def run(self, chunks: Sequence[slice], splits: int = 1) -> np.ndarray:
        return np.concatenate([self._chunk(chunk, splits) for chunk in chunks])

    def _chunk(self, part: slice, splits: int) -> np.ndarray:
        case, tokens = self.case, part.stop - part.start
        chunk = AttentionChunk(part.start, tokens, splits, EPS).packed
        angles = np.arange(part.start, part.stop)[:, None] * THETA ** (-np.arange(0, case.rotary, 2) / case.rotary)
        turns = (np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
        gate, small = case.query_gate[part], (case.query_norm, case.key_norm)
        heads, check = tokens * case.heads, self.check
        projected = (gate, case.key[part], case.value[part])
        queries, self._keys, self._values = self._prepare(
            groups_grid(tokens * (case.heads + case.kv_heads)),
            *(*projected, *small, *turns, np.zeros((heads, case.dim), np.float32), self._keys, self._values, chunk),
            check=check,
        )
        partials = np.full((heads, splits, case.dim + 2), np.nan, np.float32)
        groups = attention_grid(tokens, case.heads, case.kv_heads, splits)
        (partials,) = self._attend(groups, queries, self._keys, self._values, partials, chunk, check=check)
        out = np.zeros((tokens, case.heads * case.dim), np.float32)
        return self._join(groups_grid(heads), partials, gate, out, chunk, check=check)[0]


@pytest.mark.parametrize("shape", [(4, 2, 32, 8), (3, 1, 24, 6), (2, 2, 80, 2), (20, 1, 33, 2), (6, 2, 260, 100)])
def test_attention_of_any_shape(shape: tuple[int, int, int, int]) -> None:
    case = Attention(*shape, tokens=11)
    together = MetalAttention(case).run(parts(11, 11))
    assert close(together, attended(case, range(11)), 5e-6)
    assert np.array_equal(MetalAttention(case).run(parts(11, 3)), together)


def test_a_long_context_in_parts() -> None:
    """As many parts as positions, parts that end inside a chunk, and parts that no token of the chunk reaches."""
    case, last = Attention(16, 2, 16, 4, tokens=70), slice(69, 70)
    for splits in (1, 2, 5, 70):
        got = MetalAttention(case, check=splits == 5).run([slice(0, 40), slice(40, 69), last], splits)
        assert close(got[30:], attended(case, range(30, 70)), 5e-6)


def test_sharp_attention_does_not_overflow() -> None:
    case = Attention(4, 2, 32, 8, tokens=60, sharpness=30.0)
    got = MetalAttention(case, check=False).run(parts(60, 30), splits=2)
    assert close(got[50:], attended(case, range(50, 60)), 2e-3)  # scores of thousands, in float32
    assert np.isfinite(got).all()


def test_heads_of_small_numbers() -> None:
    """Of which eps is as large as the mean square."""
    case = Attention(4, 2, 32, 8, tokens=12, sharpness=3.0)
    case.query_gate.reshape(12, 4, 2, 32)[:, :, 0] *= np.float32(1e-3)
    case.key *= np.float32(1e-3)
    assert close(MetalAttention(case).run(parts(12, 12)), attended(case, range(12)), 5e-6)


def test_one_position_gets_its_own_value() -> None:
    case = Attention(4, 2, 32, 8, tokens=1)
    gate = case.query_gate.reshape(4, 64)[:, 32:].astype(float)
    value = np.repeat(case.value.reshape(2, 32).astype(float), 2, 0)
    assert close(MetalAttention(case).run(parts(1, 1)), (value * sigmoid(gate)).reshape(1, -1), 1e-6)


def test_not_a_number_is_not_hidden_by_attention() -> None:
    case = Attention(4, 2, 32, 8, tokens=12)
    case.key[3, 5] = np.nan
    got = MetalAttention(case).run(parts(12, 12)).reshape(12, 4, 32)
    assert np.isnan(got[3:, :2]).all()
    assert np.isfinite(got[:3]).all()
    assert np.isfinite(got[:, 2:]).all()


def test_nothing_of_later_tokens_is_seen() -> None:
    """Not even the smallest share of a large value."""
    case = Attention(2, 1, 16, 4, tokens=21)
    case.value[:10], case.value[10:] = 0, 1e30
    got = MetalAttention(case).run(parts(21, 21), splits=2)
    assert not got[:10].any()
    assert got[10].all()


@dataclass
class MetalDelta:
    """Runs a case's tokens in chunks, from an empty state on."""

    case: Delta
    check: bool = True

    def __post_init__(self) -> None:
        case = self.case
        build = delta(LinearAttention(case.key_heads, case.value_heads, case.key_dim, case.value_dim, case.kernel))
        launches = ("delta_convolve", "delta_norm", "delta_rule")
        self._convolve, self._normalise, self._rule = (kernel(build, name) for name in launches)
        self.inputs = np.zeros((max(case.kernel - 1, 1), case.channels), np.float32)
        self.memory = np.zeros((case.value_heads, case.key_dim, case.value_dim), np.float32)

    def run(self, chunks: Sequence[slice]) -> np.ndarray:
        return np.concatenate([self._chunk(chunk) for chunk in chunks])

    def _chunk(self, part: slice) -> np.ndarray:
        case, tokens, check = self.case, part.stop - part.start, self.check
        groups, mixed = threads_grid(case.channels), case.mixed[part]
        self.inputs, mixed = self._convolve(
            groups, mixed, case.conv, self.inputs, np.zeros_like(mixed), count(tokens), check=check
        )
        (mixed,) = self._normalise(delta_norm_grid(case.key_heads, tokens), mixed, check=check)
        rates = (case.decay[part], case.beta[part], case.log_decay, case.bias)
        self.memory, out = self._rule(
            rule_grid(case.value_dim, case.value_heads),
            *(mixed, *rates, self.memory, np.zeros((tokens, case.width), np.float32), count(tokens)),
            check=check,
        )
        rows = tokens * case.value_heads
        norm = kernel(plain("norms.metal"), "gated_rms_norm")
        arguments = (out, case.norm, case.gate[part], np.zeros_like(out), gated_norm(case.value_dim, EPS, rows))
        return norm(groups_grid(rows), *arguments, check=check)[0]


@pytest.mark.parametrize(
    "shape",
    [(2, 4, 32, 32, 4, 9), (1, 3, 24, 40, 2, 9), (1, 2, 128, 80, 4, 5), (1, 1, 1, 1, 1, 5), (3, 15, 17, 33, 3, 9)],
)
def test_delta_rule(shape: tuple[int, int, int, int, int, int]) -> None:
    case = Delta(*shape)
    together = MetalDelta(case)
    out, memory = delta_rule(case)
    assert close(together.run(parts(case.tokens, case.tokens)), out, 2e-5)
    assert close(together.memory, memory, 2e-5)
    if case.kernel > 1:
        assert np.array_equal(together.inputs, case.mixed[case.tokens - case.kernel + 1 :])
    for chunk in (2, 1):
        again = MetalDelta(case, check=chunk == 2)
        assert close(again.run(parts(case.tokens, chunk)), out, 2e-5)
        assert np.array_equal(again.memory, together.memory)


def test_a_long_chunk_of_the_delta_rule() -> None:
    case = Delta(2, 4, 16, 64, 4, 100)
    assert close(MetalDelta(case, check=False).run(parts(100, 60)), delta_rule(case)[0], 2e-5)
