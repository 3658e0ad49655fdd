"""Random inputs of attention and of the gated delta rule, run in any chunks; light to import, for it also runs in
subprocesses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matrices import floats

from moepack.runtime import _native

EPS = 1e-6
THETA = 1e4


def parts(tokens: int, chunk: int) -> list[slice]:
    return [slice(first, min(first + chunk, tokens)) for first in range(0, tokens, chunk)]


@dataclass
class Attention:
    """A layer of `heads` heads after `tokens` tokens; what no token has written of the cache is not a number."""

    heads: int
    kv_heads: int
    dim: int
    rotary: int
    tokens: int
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.heads)
        self.query_gate = floats(random, self.tokens, self.heads * 2 * self.dim)
        self.key, self.value = (floats(random, self.tokens, self.kv_heads * self.dim) for _ in range(2))
        self.query_norm, self.key_norm = (floats(random, self.dim, scale=self.sharpness) for _ in range(2))

    def run(self, threads: int, chunks: Sequence[slice]) -> np.ndarray:
        pool = _native.Pool(threads)
        shape = _native.attention_shape(self.heads, self.kv_heads, self.dim, self.rotary, EPS)
        keys, values = (np.full((self.tokens + 40, self.kv_heads * self.dim), np.nan, np.float32) for _ in range(2))
        frequencies = (THETA ** (-np.arange(0, self.rotary, 2) / max(self.rotary, 1))).astype(np.float32)
        out = np.full((self.tokens, self.heads * self.dim), np.nan, np.float32)
        for part in chunks:
            cos, sin = (np.empty((part.stop - part.start, self.rotary // 2), np.float32) for _ in range(2))
            _native.rotation(part.start, frequencies, cos, sin)
            projected = (self.query_gate[part], self.key[part], self.value[part])
            small = (self.query_norm, self.key_norm, cos, sin)
            _native.attention(pool, shape, part.start, *projected, *small, keys, values, out[part])
        return out


@dataclass
class Delta:
    """A layer's tokens from an empty state on."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    tokens: int

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.key_heads)
        self.width = self.value_heads * self.value_dim
        self.channels = 2 * self.key_heads * self.key_dim + self.width
        self.mixed, self.gate = (floats(random, self.tokens, n) for n in (self.channels, self.width))
        self.beta = floats(random, self.tokens, self.value_heads)
        self.decay = floats(random, self.tokens, self.value_heads, scale=9.0)
        self.conv, self.norm = floats(random, self.kernel, self.channels), floats(random, self.value_dim)
        self.log_decay, self.bias = (floats(random, self.value_heads) for _ in range(2))

    def run(self, threads: int, chunks: Sequence[slice]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Outputs, the state, and the convolution's inputs that are kept."""
        pool, sizes = _native.Pool(threads), (self.key_heads, self.value_heads, self.key_dim, self.value_dim)
        shape = _native.delta_shape(*sizes, self.kernel, EPS)
        inputs = np.zeros((self.kernel - 1, self.channels), np.float32)
        memory = np.zeros((self.value_heads, self.key_dim, self.value_dim), np.float32)
        out = np.full((self.tokens, self.width), np.nan, np.float32)
        small: tuple[Any, ...] = (self.conv, self.log_decay, self.bias, self.norm)
        for part in chunks:
            projected = (self.mixed[part], self.gate[part], self.beta[part], self.decay[part])
            _native.delta(pool, shape, *projected, *small, inputs, memory, out[part])
        return out, memory, inputs
