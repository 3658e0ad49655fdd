"""Attention and Gated DeltaNet without their projections, part of `make bench`: the 397B model's layer sizes.

Each call takes the next of several layers' caches or states, which together exceed the processor's caches, as those of
a model do. What is shown are medians of ROUNDS calls, with the bytes of cache or state and the multiply-adds that are
due. MOEPACK_ISA picks the instruction set.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from moepack.runtime import _native
from moepack.runtime.backends.cpu import CpuBackend

HEADS, KV_HEADS, HEAD_DIM, ROTARY = 32, 2, 256, 64
KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM, KERNEL = 16, 64, 128, 128, 4
CHANNELS = 2 * KEY_HEADS * KEY_DIM + VALUE_HEADS * VALUE_DIM
ATTENTIONS = ((1, 1023), (1, 8191), (1, 32767), (2048, 0), (64, 30720))  # tokens, position of the first
DELTAS = (1, 2048)  # tokens
TOGETHER = 256_000_000  # bytes of the caches or states that take turns
ROUNDS, LONGEST = 9, 3.0  # rounds, and the seconds after which no other is begun
out = Console(highlight=False, width=120)


@dataclass(frozen=True)
class Case:
    """One call, `run(pool, layer)`, on one of `layers` caches or states."""

    name: str
    layers: int
    bytes: int
    products: int
    run: Callable[[_native.Pool, int], None]

    def seconds(self, threads: int) -> float:
        """The median of up to ROUNDS calls after an uncounted one."""
        pool, taken = _native.Pool(threads), []
        self.run(pool, 0)
        end = time.perf_counter() + LONGEST
        while len(taken) < ROUNDS and (not taken or time.perf_counter() < end):
            start = time.perf_counter()
            self.run(pool, (len(taken) + 1) % self.layers)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)


def floats(*shape: int) -> np.ndarray:
    """Normal deviates."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def filled(*shape: int) -> np.ndarray:
    """Normal deviates where a session would keep its state."""
    array = CpuBackend(1).state(*shape)
    array[:] = floats(*shape)
    return array


def attention(tokens: int, position: int) -> Case:
    """`tokens` tokens after `position` others: the cache is read once, a query meets all positions up to its own."""
    shape = _native.attention_shape(HEADS, KV_HEADS, HEAD_DIM, ROTARY, 1e-6)
    size = 2 * (position + tokens) * KV_HEADS * HEAD_DIM * 4
    caches = [[filled(position + tokens, KV_HEADS * HEAD_DIM) for _ in range(2)] for _ in range(-(-TOGETHER // size))]
    projected = (floats(tokens, 2 * HEADS * HEAD_DIM), *(floats(tokens, KV_HEADS * HEAD_DIM) for _ in range(2)))
    small = (*(np.ones(HEAD_DIM, np.float32) for _ in range(2)), *(floats(tokens, ROTARY // 2) for _ in range(2)))
    to = np.empty((tokens, HEADS * HEAD_DIM), np.float32)

    def run(pool: _native.Pool, layer: int) -> None:
        _native.attention(pool, shape, position, *projected, *small, *caches[layer], to)

    pairs = tokens * position + tokens * (tokens + 1) // 2
    name = f"attention, {tokens} tokens at {position}"
    return Case(name, len(caches), size, 2 * pairs * HEADS * HEAD_DIM, run)


def delta(tokens: int) -> Case:
    """The state is read and written once; each token multiplies it four times: decay, read, correct, read out."""
    shape = _native.delta_shape(KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM, KERNEL, 1e-6)
    cells = VALUE_HEADS * KEY_DIM * VALUE_DIM
    states = [filled(VALUE_HEADS, KEY_DIM, VALUE_DIM) for _ in range(-(-TOGETHER // (4 * cells)))]
    width = VALUE_HEADS * VALUE_DIM
    projected = [floats(tokens, n) for n in (CHANNELS, width, VALUE_HEADS, VALUE_HEADS)]
    weights = (floats(KERNEL, CHANNELS), floats(VALUE_HEADS), floats(VALUE_HEADS), floats(VALUE_DIM))
    inputs, to = floats(KERNEL - 1, CHANNELS), np.empty((tokens, width), np.float32)

    def run(pool: _native.Pool, layer: int) -> None:
        _native.delta(pool, shape, *projected, *weights, inputs, states[layer], to)

    return Case(f"delta, {tokens} tokens", len(states), 8 * cells, 4 * tokens * cells, run)


def main() -> None:
    """Run every case on one and two threads and print a table."""
    table = Table("case", "threads", "ms", "GB/s", "10^9 products/s", title=_native.instruction_set())
    for make, *sizes in [*((attention, *sizes) for sizes in ATTENTIONS), *((delta, tokens) for tokens in DELTAS)]:
        case = make(*sizes)
        for threads in (1, 2):
            seconds = case.seconds(threads)
            rates = case.bytes / seconds / 1e9, case.products / seconds / 1e9
            table.add_row(case.name, str(threads), f"{1000 * seconds:.2f}", *(f"{rate:.1f}" for rate in rates))
    out.print(table)


if __name__ == "__main__":
    main()
