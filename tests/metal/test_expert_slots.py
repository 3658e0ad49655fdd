"""One token's experts from the slots that hold their records, and their sum, against float64."""

import numpy as np
import pytest
from matrices import floats
from metal.running import kernel
from oracle import expert_matrix
from packs import random_record
from reference import close, sigmoid, silu

from moepack.layout.formats import parse
from moepack.layout.record import ExpertShape, RecordLayout
from moepack.runtime.backends.metal.launches import ARENAS, combination, count, experts_grid, slot, threads_grid
from moepack.runtime.backends.metal.library import experts, plain

LAYOUTS = {
    "affine": (160, 96, ("affine2-g32", "affine2-g32", "affine2-g32")),
    "mixed": (576, 64, ("affine4-g64", "book2-g8", "affine3-g32s")),
    "books": (96, 544, ("book3-g16", "book2-g16", "book3-g8")),
}


def record_layout(name: str) -> RecordLayout:
    hidden, intermediate, formats = LAYOUTS[name]
    return RecordLayout.of(
        ExpertShape(hidden, intermediate),
        {projection: parse(format_) for projection, format_ in zip(("gate", "up", "down"), formats, strict=True)},
    )


class Slots:
    """K random records spread over the arenas, in slots that are not in the order of the experts."""

    def __init__(self, random: np.random.Generator, layout: RecordLayout, k: int) -> None:
        per_arena = k // ARENAS + 2
        self.arenas = [np.full(per_arena * layout.stride, 0xAA, np.uint8) for _ in range(ARENAS)]
        self.records = [random_record(random, layout) for _ in range(k)]
        self.table = b""
        for place, record in zip(random.permutation(per_arena * ARENAS)[:k].tolist(), self.records, strict=True):
            arena, offset = place % ARENAS, place // ARENAS * layout.stride
            self.arenas[arena][offset : offset + layout.stride] = record
            self.table += slot(arena, offset)


@pytest.mark.parametrize(("name", "k"), [("affine", 1), ("affine", 10), ("mixed", 3), ("books", 4)])
def test_experts_read_their_records_where_the_table_says(name: str, k: int) -> None:
    random, layout = np.random.default_rng(k), record_layout(name)
    shape, slots = layout.shape, Slots(random, layout, k)
    x = floats(random, shape.hidden)
    gated, down = (kernel(experts(layout), name) for name in ("experts_gated", "experts_down"))
    inner, outer = (np.zeros((k, width), np.float32) for width in (shape.intermediate, shape.hidden))
    (got_inner,) = gated(experts_grid(shape.intermediate, k), *slots.arenas, slots.table, x, inner)
    (got,) = down(experts_grid(shape.hidden, k), *slots.arenas, slots.table, got_inner, outer)
    for i, record in enumerate(slots.records):
        gate, up, last = (expert_matrix(record, layout, part).astype(float) for part in ("gate", "up", "down"))
        h = silu(gate @ x) * (up @ x)
        assert close(got_inner[i], h)
        assert close(got[i], last @ h)


@pytest.mark.parametrize("k", [1, 2, 10])
def test_the_sum_of_experts_the_shared_one_and_the_residual_stream(k: int) -> None:
    random, hidden = np.random.default_rng(k), 300
    parts, weights, order = floats(random, k, hidden), floats(random, k), random.permutation(k).astype(np.uint32)
    shared, gate, x = floats(random, hidden), floats(random, 1), floats(random, hidden)
    (got,) = combine(parts, weights, order, shared, gate, x)
    assert close(got, x + weights @ parts.astype(float) + sigmoid(gate.astype(float)) * shared)


def test_experts_are_summed_in_the_order_given() -> None:
    """Terms so different in size that another order gives another sum; products are exact."""
    random, k, hidden = np.random.default_rng(0), 10, 300
    parts = floats(random, k, hidden) * np.float32(10) ** random.integers(-3, 4, (k, hidden)).astype(np.float32)
    weights, order = np.float32(2) ** -random.integers(0, 5, k).astype(np.float32), random.permutation(k)
    nothing = np.zeros(hidden, np.float32)
    (got,) = combine(parts, weights, order.astype(np.uint32), nothing, np.zeros(1, np.float32), nothing)
    sums = [np.cumsum((weights[:, None] * parts)[way], axis=0, dtype=np.float32)[-1] for way in (order, order[::-1])]
    assert np.array_equal(got, sums[0])
    assert not np.array_equal(got, sums[1])


def combine(*arrays: np.ndarray) -> list[np.ndarray]:
    k, hidden = arrays[0].shape
    return kernel(plain("combine.metal"), "combine")(threads_grid(hidden), *arrays, combination(k, hidden))


def test_gated_sums_and_swiglu_of_many_tokens() -> None:
    random, tokens, width = np.random.default_rng(0), 3, 290
    y, x, gate = (floats(random, *shape) for shape in ((tokens, width), (tokens, width), (tokens,)))
    add_gated, swiglu = (kernel(plain("combine.metal"), name) for name in ("add_gated", "swiglu"))
    (got,) = add_gated(threads_grid(width, tokens), y, gate, x, count(width))
    assert close(got, x + sigmoid(gate.astype(float))[:, None] * y)
    (h,) = swiglu(threads_grid(x.size), x, y, np.zeros_like(x), count(x.size))
    assert close(h, silu(x.astype(float)) * y)


def test_plain_sums_and_zeros() -> None:
    random, size = np.random.default_rng(0), 301
    y, x = (floats(random, size) for _ in range(2))
    add, clear = (kernel(plain("combine.metal"), name) for name in ("add", "clear"))
    assert np.array_equal(add(threads_grid(size), y, x, count(size))[0], x + y)
    (got,) = clear(threads_grid(size - 1), x, count(size - 1))
    assert got.tolist() == [0.0] * (size - 1) + [x[-1]]


@pytest.mark.parametrize("x", [-200.0, -87.5, -20.0, -1e-3, 0.0, 1e-6, 3.3, 30.0, 88.5, 1e4])
def test_gates_hold_at_the_ends_of_the_range(x: float) -> None:
    gate, up = np.full(2, x, np.float32), np.ones(2, np.float32)
    (got,) = kernel(plain("combine.metal"), "swiglu")((1, 1, 1), gate, up, np.zeros(2, np.float32), count(2))
    wanted = silu(np.float64(np.float32(x)))
    assert got[0] == pytest.approx(wanted, rel=1e-6, abs=1e-30)
