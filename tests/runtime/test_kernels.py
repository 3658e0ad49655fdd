"""Each kernel against numpy in float64, all formats and odd shapes, and exactly equal however the work is divided."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_sets import agree, saved_on_every_set
from matrices import FLOATS, affine, coded, floats
from oracle import dense, expert_matrix
from packs import random_record
from reference import choose, close, rms_norm, sigmoid, silu

from moepack.layout.formats import (
    AFFINE_FORMATS,
    BITS,
    FORMATS,
    GRID_FORMATS,
    AffineFormat,
    Format,
    GridFormat,
    parse,
)
from moepack.layout.matrix import StoredMatrix
from moepack.layout.record import ExpertShape, RecordLayout
from moepack.runtime import _native
from moepack.runtime.backends.cpu import CpuBackend
from moepack.runtime.backends.rotary import frequencies

CPUS = {threads: CpuBackend(threads, exact=True) for threads in (1, 2, 4)}
CPU = CPUS[2]
EPS = 1e-6


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("format", AFFINE_FORMATS, ids=lambda format: format.name)
def test_affine_weights_are_the_dequantized_ones_bit_for_bit(format: AffineFormat, dtype: str) -> None:
    stored = affine(np.random.default_rng(0), 5, 384, format, dtype)
    rows = CPU.embed(CPU.matrix(stored), np.arange(5, dtype=np.int32))
    assert np.array_equal(rows, dense(stored))


@pytest.mark.parametrize("format", GRID_FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize("cols", [32, 96, 4224])
def test_grid_weights_are_the_dequantized_ones_bit_for_bit(format: GridFormat, cols: int) -> None:
    stored = coded(np.random.default_rng(cols), 5, cols, format)
    assert stored.shape == (5, cols)
    rows = CPU.embed(CPU.matrix(stored), np.arange(5, dtype=np.int32))
    assert np.array_equal(rows, dense(stored))


@pytest.mark.parametrize("format", GRID_FORMATS, ids=lambda format: format.name)
def test_a_grid_row_is_scaled_once_after_its_sum(format: GridFormat) -> None:
    """With whole activations every sum is exact, so that only the scale's product rounds."""
    random = np.random.default_rng(0)
    stored, x = coded(random, 24, 192, format), random.integers(-9, 10, (3, 192)).astype(np.float32)
    levels = dense(StoredMatrix(stored.weight, np.ones_like(stored.scales), format=format, grids=stored.grids))
    wanted = (x @ levels.T) * stored.scales.astype(np.float32)[:, 0]
    assert np.array_equal(CPU.linear(x, CPU.matrix(stored)), wanted)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("cols", [1, 15, 16, 33, 384])
def test_float_rows_of_any_width_are_exact(dtype: str, cols: int) -> None:
    stored = StoredMatrix(floats(np.random.default_rng(1), 3, cols).astype(FLOATS[dtype]))
    assert np.array_equal(CPU.embed(CPU.matrix(stored), np.array([2, 0], np.int32)), dense(stored)[[2, 0]])


def test_half_precision_extremes_are_exact() -> None:
    values = np.array([[0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 65504, -65504, np.inf, -np.inf]], np.float16)
    row = CPU.embed(CPU.matrix(StoredMatrix(values)), np.array([0], np.int32))
    assert row.tobytes() == values.astype(np.float32).tobytes()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*FORMATS, *FLOATS]), st.integers(1, 70), st.integers(1, 40), st.integers(1, 6), st.integers(0, 99)
)
def test_products_are_right_and_do_not_depend_on_how_they_are_computed(
    kind: Format | str, rows: int, tokens: int, width: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    if isinstance(kind, str):
        stored = StoredMatrix(floats(random, rows, 37 * width).astype(FLOATS[kind]))
    else:
        stored = coded(random, rows, kind.divisor * width, kind)
    x = floats(random, tokens, stored.shape[1])
    together = CPU.linear(x, CPU.matrix(stored))
    assert close(together, x.astype(float) @ dense(stored).T.astype(float))
    for cpu in CPUS.values():
        matrix = cpu.matrix(stored)
        assert np.array_equal(cpu.linear(x, matrix), together)
        assert np.array_equal(np.concatenate([cpu.linear(x[t : t + 1], matrix) for t in range(tokens)]), together)


@pytest.mark.parametrize("name", ["affine2-g32", "affine2-g16s", "book3-g8"])
def test_activations_with_many_groups_and_rows(name: str) -> None:
    """More groups than are prepared at once, more rows and tokens than a block."""
    random = np.random.default_rng(2)
    stored = coded(random, 333, 4224, parse(name))
    x = floats(random, 75, 4224)
    assert close(CPU.linear(x, CPU.matrix(stored)), x.astype(float) @ dense(stored).T.astype(float))


@pytest.mark.parametrize("tokens", [1, 3, 50])
def test_swiglu(tokens: int) -> None:
    random = np.random.default_rng(3)
    gate, up = affine(random, 41, 96, AffineFormat(4, 32)), StoredMatrix(floats(random, 41, 96))
    x = floats(random, tokens, 96)
    wanted = silu(x.astype(float) @ dense(gate).T) * (x.astype(float) @ dense(up).T)
    assert close(CPU.swiglu(x, CPU.matrix(gate), CPU.matrix(up)), wanted)


@pytest.mark.parametrize("x", [-200.0, -87.5, -20.0, -1e-3, 0.0, 1e-6, 3.3, 30.0, 88.5, 1e4])
def test_gates_hold_at_the_ends_of_the_range(x: float) -> None:
    one = CPU.matrix(StoredMatrix(np.ones((1, 1), np.float32)))
    got = CPU.swiglu(np.array([[x]], np.float32), one, one)[0, 0]
    with np.errstate(over="ignore"):
        assert got == pytest.approx(silu(np.float64(np.float32(x))) * np.float32(x), rel=1e-6, abs=1e-30)


def test_not_a_number_is_not_hidden() -> None:
    one = CPU.matrix(StoredMatrix(np.ones((1, 1), np.float32)))
    assert np.isnan(CPU.swiglu(np.array([[np.nan]], np.float32), one, one)).all()


@pytest.mark.parametrize("width", [1, 16, 100, 384])
def test_norm_and_gated_sum(width: int) -> None:
    random = np.random.default_rng(width)
    x, y, weight, gate = (floats(random, *s) for s in ((9, width), (9, width), (width,), (9, 1)))
    assert close(CPU.rms_norm(x, weight, EPS), rms_norm(x.astype(float), weight.astype(float), EPS))
    wanted = y + sigmoid(gate.astype(float)) * x
    CPU.add_gated(y, x, gate)
    assert close(y, wanted)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 600), st.data())
def test_the_router_chooses_the_largest_and_breaks_ties_downwards(experts: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, min(experts, 12)))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    logits = floats(random, 3, experts, scale=3.0).round(data.draw(st.integers(0, 3)))  # few decimals: many ties
    routes = CPU.route(logits, k)
    for t in range(3):
        ids, weights = choose(logits[t].astype(float), k)
        assert routes.ids[t].tolist() == ids.tolist()
        assert close(routes.weights[t], weights)


BAD_ROUTES = """
import numpy as np
from moepack.runtime import _native
from moepack.runtime.backends.cpu import CpuBackend
routes = CpuBackend(1).route(np.load(sys.argv[1])["logits"], 4)
np.savez(sys.argv[1], routes.ids, routes.weights)
print(_native.instruction_set())
"""


def bad_logits() -> np.ndarray:
    """Rows of router logits of which some, or all, are not finite."""
    random = np.random.default_rng(0)
    logits = floats(random, 40, 21, scale=3.0)
    for row, share in zip(logits, np.linspace(0.05, 1.0, len(logits)), strict=True):
        row[random.random(21) < share] = random.choice([np.nan, -np.nan, np.inf, -np.inf])
    return logits


def test_the_router_chooses_distinct_experts_whatever_the_logits(tmp_path: Path) -> None:
    """Damaged weights may give any, before the damage is known."""
    logits = bad_logits()
    assert np.isnan(logits[:, 0]).any()
    assert np.isnan(logits).all(1).any()
    for ids, weights in saved_on_every_set(BAD_ROUTES, tmp_path, logits=logits).values():
        for t, row in enumerate(logits):
            wanted_ids, wanted_weights = choose(row.astype(float), 4)
            assert ids[t].tolist() == wanted_ids.tolist()
            assert len(set(ids[t].tolist())) == 4
            assert close(weights[t], wanted_weights)


RECORDS = [
    (hidden, intermediate, f"affine{bits}-g{group}", "affine2-g32", f"affine{bits}-g32")
    for hidden, intermediate, group in ((384, 192, 64), (96, 96, 32), (128, 256, 128))
    for bits in BITS
]
RECORDS += [(160, 96, one.name, "affine2-g32", other.name) for one, other in pairwise((*GRID_FORMATS, GRID_FORMATS[0]))]


@pytest.mark.parametrize(("hidden", "intermediate", "gate_format", "up_format", "down_format"), RECORDS)
def test_an_expert_reads_its_record(
    hidden: int, intermediate: int, gate_format: str, up_format: str, down_format: str
) -> None:
    random = np.random.default_rng(hidden)
    formats = {"gate": parse(gate_format), "up": parse(up_format), "down": parse(down_format)}
    layout = RecordLayout.of(ExpertShape(hidden, intermediate), formats)
    record, x, before = random_record(random, layout), floats(random, 50, hidden), floats(random, 50, hidden)
    tokens = np.flatnonzero(random.random(50) < 0.6).astype(np.int32)
    weights = random.random(len(tokens)).astype(np.float32)
    gate, up, down = (expert_matrix(record, layout, name).astype(float) for name in ("gate", "up", "down"))
    wanted = before.astype(float)
    wanted[tokens] += weights[:, None] * ((silu(x[tokens] @ gate.T) * (x[tokens] @ up.T)) @ down.T)
    results = []
    for cpu in CPUS.values():
        out = before.copy()
        cpu.expert(out, x, record, cpu.layout(layout), tokens, weights)
        results.append(out)
    assert close(results[0], wanted)
    alone = before.copy()
    for i in range(len(tokens)):
        CPU.expert(alone, x, record, CPU.layout(layout), tokens[i : i + 1], weights[i : i + 1])
    assert all(np.array_equal(result, alone) for result in results)


def test_misfits_are_refused_before_anything_is_read() -> None:
    matrix = CPU.matrix(affine(np.random.default_rng(0), 8, 64, AffineFormat(2, 32)))
    with pytest.raises(ValueError, match="shapes do not fit"):
        CPU.linear(np.zeros((1, 32), np.float32), matrix)
    with pytest.raises(ValueError, match="no such row"):
        CPU.embed(matrix, np.array([8], np.int32))
    with pytest.raises(ValueError, match="code bytes"):
        _native.affine_matrix(*(np.zeros(4, np.uint8),) * 3, "BF16", 2, 32, 8, 64)
    levels = _native.Levels(GridFormat("book", 2, 8).table)
    for projection in (_native.affine_projection(2, 32, 0, 0, 0), _native.grid_projection(levels, 8, 0, 0, 0)):
        with pytest.raises(ValueError, match="outside the record"):
            _native.RecordViews(64, 64, [projection] * 3, 100)
        with pytest.raises(ValueError, match="columns do not"):
            _native.RecordViews(48, 48, [projection] * 3, 1 << 20)
    with pytest.raises(ValueError, match="grid bytes"):
        _native.grid_matrix(np.zeros(128, np.uint8), *(np.zeros(4, np.uint8),) * 2, levels, 8, 8, 64)
    with pytest.raises(ValueError, match="no kernel for such groups"):
        _native.grid_projection(levels, 32, 0, 0, 0)
    with pytest.raises(ValueError, match="16 or 256 grids"):
        _native.Levels(np.zeros((15, 4), np.int16))
    for group in (0, -32, 48):
        with pytest.raises(ValueError, match="whole groups"):
            _native.affine_matrix(*(np.zeros(4, np.uint8),) * 3, "BF16", 2, group, 8, 64)


def test_misfits_are_refused_rather_than_copied(tmp_path: Path) -> None:
    """A copy would take the result, or a read that is still to come, with it."""
    matrix, x = CPU.matrix(affine(np.random.default_rng(0), 8, 64, AffineFormat(2, 32))), np.ones((2, 64), np.float32)
    for out in (np.zeros((2, 8)), np.zeros((2, 16), np.float32)[:, ::2], np.zeros((8, 2), np.float32).T):
        with pytest.raises(TypeError):
            _native.matmul(CPU._pool, matrix, x, out)
        assert not out.any()
    with pytest.raises(TypeError):
        _native.matmul(CPU._pool, matrix, x.astype(np.float64), np.zeros((2, 8), np.float32))
    with pytest.raises(TypeError):
        _native.embed(matrix, np.array([1], np.int64), np.zeros((1, 64), np.float32))
    (tmp_path / "file").write_bytes(bytes(100))
    reads = _native.ReadPool(1)
    with (tmp_path / "file").open("rb") as file:
        for to in (np.zeros(64, np.uint8)[::2], np.zeros(16, np.int32)):
            with pytest.raises(TypeError):
                reads.submit(file.fileno(), 0, to)


@pytest.mark.parametrize("dims", [2, 8, 32, 64])
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e7])
def test_rotary_frequencies_are_those_of_transformers_bit_for_bit(dims: int, theta: float) -> None:
    exponents = torch.arange(0, dims, 2, dtype=torch.int64).to(torch.float32) / dims
    assert np.array_equal(frequencies(dims, theta), (1.0 / (theta**exponents)).numpy())


GATES = """
import numpy as np
from matrices import coded, floats
from moepack.layout.formats import FORMATS
from moepack.runtime import _native
from moepack.runtime.backends.cpu import CpuBackend
cpu, random = CpuBackend(1, exact=True), np.random.default_rng(0)
results = []
for format in FORMATS:
    matrix, x = cpu.matrix(coded(random, 40, 384, format)), floats(random, 11, 384)
    results.append(cpu.swiglu(x, matrix, matrix))
np.savez(sys.argv[1], np.stack(results))
print(_native.instruction_set())
"""


def test_every_instruction_set_is_right_and_those_with_fused_multiply_add_agree_exactly(tmp_path: Path) -> None:
    results = saved_on_every_set(GATES, tmp_path)
    random, wanted = np.random.default_rng(0), []
    for format in FORMATS:
        stored, x = coded(random, 40, 384, format), floats(random, 11, 384).astype(float)
        product = x @ dense(stored).T
        wanted.append(silu(product) * product)
    assert _native.instruction_set() in results
    assert all(close(got, np.stack(wanted)) for (got,) in results.values())
    assert agree(results)
