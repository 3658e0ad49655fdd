"""Products with rounded activations against their plain statement in numpy, and the same bits whatever the way.

The statement: blocks of 32 activations share a scale, their largest magnitude / 16319; each is rounded to the nearest
multiple of it, ties to even; everything after that is exact but for float32 sums between blocks.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_sets import agree, saved_on_every_set
from matrices import coded, floats, highest
from oracle import dense, expert_matrix
from packs import random_record
from reference import silu

from moepack.layout.formats import AFFINE_FORMATS, FORMATS, GRID_FORMATS, AffineFormat, Format, parse
from moepack.layout.matrix import StoredMatrix
from moepack.layout.record import PROJECTIONS, ExpertShape, RecordLayout
from moepack.runtime import _native
from moepack.runtime.backends.base import Routes, pair_of
from moepack.runtime.backends.cpu import CpuBackend

CPUS = {threads: CpuBackend(threads) for threads in (1, 2, 3)}
CPU, EXACT = CPUS[2], CpuBackend(2, exact=True)
ROUNDED = (*AFFINE_FORMATS, *(format_ for format_ in GRID_FORMATS if format_.family == "book"))
FLOATING = tuple(format_ for format_ in FORMATS if format_ not in ROUNDED)
MOST = np.float32(16319)


def rounded(x: np.ndarray) -> np.ndarray:
    """What products see of float32 activations [tokens, cols], in float64."""
    blocks = x.reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        numbers = np.where(largest < np.float32(1e-30), np.float32(0), np.rint(blocks * (MOST / largest)))
    return (numbers.astype(float) * (largest / MOST)).reshape(x.shape)


def right(got: np.ndarray, x: np.ndarray, stored: StoredMatrix) -> bool:
    """Whether products are the plain statement's, up to float32 sums: a share of all terms, however they cancel."""
    weights = dense(stored).astype(float)
    return bool((np.abs(got - rounded(x) @ weights.T) <= 5e-7 * (np.abs(x) @ np.abs(weights).T)).all())


@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("format_", ROUNDED, ids=lambda format_: format_.name)
def test_the_largest_codes_and_activations_overflow_no_integer(format_: Format, tokens: int) -> None:
    stored = highest(np.random.default_rng(6), 40, 640, format_)
    for x in (np.ones((tokens, 640), np.float32), -np.ones((tokens, 640), np.float32)):
        assert right(CPU.linear(x, CPU.matrix(stored)), x, stored)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(ROUNDED), st.integers(1, 70), st.integers(1, 30), st.integers(1, 40), st.integers(0, 99))
def test_products_are_those_of_rounded_activations(
    format_: Format, rows: int, tokens: int, width: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    stored = coded(random, rows, format_.divisor * width, format_)
    x = floats(random, tokens, stored.shape[1])
    together = CPU.linear(x, CPU.matrix(stored))
    assert right(together, x, stored)
    for cpu in CPUS.values():
        matrix = cpu.matrix(stored)
        assert np.array_equal(cpu.linear(x, matrix), together)
        assert np.array_equal(np.concatenate([cpu.linear(x[t : t + 1], matrix) for t in range(tokens)]), together)


@pytest.mark.parametrize("format_", ROUNDED, ids=lambda format_: format_.name)
def test_rounding_is_felt_and_small(format_: Format) -> None:
    random = np.random.default_rng(1)
    stored, x = coded(random, 64, 1024, format_), floats(random, 5, 1024)
    exact, ours = (cpu.linear(x, cpu.matrix(stored)) for cpu in (EXACT, CPU))
    assert not np.array_equal(exact, ours)
    assert np.linalg.norm(ours - exact) < 1e-4 * np.linalg.norm(exact)


@pytest.mark.parametrize("format_", FLOATING, ids=lambda format_: format_.name)
def test_formats_without_byte_sized_levels_see_floats(format_: Format) -> None:
    random = np.random.default_rng(1)
    stored, x = coded(random, 40, 192, format_), floats(random, 5, 192)
    assert np.array_equal(*(cpu.linear(x, cpu.matrix(stored)) for cpu in (EXACT, CPU)))


def test_exact_matrices_and_exact_backends_see_floats() -> None:
    random = np.random.default_rng(2)
    stored, x = coded(random, 40, 192, AffineFormat(8, 64)), floats(random, 5, 192)
    wanted = EXACT.linear(x, EXACT.matrix(stored))
    assert np.array_equal(CPU.linear(x, CPU.exact_matrix(stored)), wanted)
    assert not np.array_equal(CPU.linear(x, CPU.matrix(stored)), wanted)


@pytest.mark.parametrize("tokens", [1, 2, 3, 17])
@pytest.mark.parametrize("name", ["affine4-g64", "book2-g8", "book3-g16"])
def test_blocks_of_one_size_do_not_disturb_others(name: str, tokens: int) -> None:
    """A block with an outlier, one of zeros, one of denormals: each has a scale of its own."""
    random = np.random.default_rng(3)
    stored, x = coded(random, 24, 256, parse(name)), floats(random, tokens, 256)
    x[:, 5] = 1e4
    x[:, 32:64] = 0
    x[:, 64:96] = np.float32(1e-42)
    assert right(CPU.linear(x, CPU.matrix(stored)), x, stored)


@pytest.mark.parametrize("tokens", [1, 4, 9])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["affine2-g64", "book2-g8"])
def test_what_is_not_finite_is_not_hidden(name: str, bad: float, tokens: int) -> None:
    random = np.random.default_rng(4)
    stored, x = coded(random, 24, 256, parse(name)), floats(random, tokens, 256)
    x[0, 100] = bad
    got = CPU.linear(x, CPU.matrix(stored))
    assert not np.isfinite(got[0]).any()
    assert np.isfinite(got[1:]).all()


BAD_PRODUCTS = """
import numpy as np
from matrices import coded, floats
from moepack.layout.formats import parse
from moepack.runtime import _native
from moepack.runtime.backends.cpu import CpuBackend
cpu, random = CpuBackend(1), np.random.default_rng(4)
results = []
for name in ("affine2-g64", "affine8-g32", "book2-g8", "book3-g16"):
    matrix, x = cpu.matrix(coded(random, 24, 256, parse(name))), floats(random, 9, 256)
    x[1, 7], x[3, 100], x[5, 255], x[7] = np.nan, np.inf, -np.inf, -np.nan
    results.append(cpu.linear(x, matrix))
np.savez(sys.argv[1], np.stack(results))
print(_native.instruction_set())
"""


def test_no_set_of_kernels_hides_or_spreads_what_is_not_finite(tmp_path: Path) -> None:
    results = saved_on_every_set(BAD_PRODUCTS, tmp_path)
    for (products,) in results.values():
        assert np.isnan(products[:, 1::2]).all()
        assert np.isfinite(products[:, ::2]).all()
    assert agree({name: [products[:, ::2]] for name, (products,) in results.items()})


@pytest.mark.parametrize("name", ["affine2-g32", "book2-g8", "book3-g16"])
def test_an_expert_rounds_what_comes_in_and_what_goes_down(name: str) -> None:
    """Its inner activations differ from numpy's in the last bits, so that a few of them round to the neighbour."""
    random, layout = (
        np.random.default_rng(7),
        RecordLayout.of(ExpertShape(192, 96), dict.fromkeys(PROJECTIONS, parse(name))),
    )
    record, x = random_record(random, layout), floats(random, 50, 192)
    gate, up, down = (expert_matrix(record, layout, projection).astype(float) for projection in PROJECTIONS)
    inner = silu(rounded(x) @ gate.T) * (rounded(x) @ up.T)
    wanted = rounded(inner.astype(np.float32)) @ down.T
    ours, exact = np.zeros((2, 50, 192), np.float32)
    for cpu, to in (CPU, ours), (EXACT, exact):
        cpu.expert(to, x, record, cpu.layout(layout), np.arange(50, dtype=np.int32), np.ones(50, np.float32))
    assert np.linalg.norm(ours - wanted) < 0.3 * np.linalg.norm(exact - wanted)


@pytest.mark.parametrize("name", ["affine2-g32", "affine2-g16s", "book2-g8", "book3-g8", "affine4-g32"])
@pytest.mark.parametrize("exact", [False, True], ids=["rounded", "exact"])
def test_experts_of_one_token_added_up_are_those_of_many_tokens(name: str, exact: bool) -> None:
    random, cpu = np.random.default_rng(5), CpuBackend(2, exact=exact)
    layout = RecordLayout.of(ExpertShape(192, 96), dict.fromkeys(PROJECTIONS, parse(name)))
    records = [random_record(random, layout) for _ in range(5)]
    x, weights = floats(random, 7, 192), random.random((7, 5)).astype(np.float32)
    wanted, view = np.zeros((7, 192), np.float32), cpu.layout(layout)
    for record, share in zip(records, weights.T, strict=True):
        cpu.expert(wanted, x, record, view, np.arange(7, dtype=np.int32), np.ascontiguousarray(share))
    came, ids = [3, 0, 4, 1, 2], np.arange(5, dtype=np.int32)[None]
    for t in range(7):
        parts = np.empty((5, 192), np.float32)
        cpu.experts(x[t : t + 1], [records[i] for i in came[:2]], view, [[0]] * 2, parts)
        cpu.experts(x[t : t + 1], [records[i] for i in came[2:]], view, [[0]] * 3, parts[2:])
        assert np.array_equal(cpu.combine(parts, came, Routes(ids, weights[t : t + 1]))[0], wanted[t])


@pytest.mark.parametrize("name", ["affine2-g32", "book2-g8", "book3-g8", "affine8-g32"])
@pytest.mark.parametrize("exact", [False, True], ids=["rounded", "exact"])
@given(st.integers(1, 16), st.integers(1, 5), st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_experts_of_few_tokens_come_in_any_order(name: str, exact: bool, tokens: int, k: int, seed: int) -> None:
    """Computed in batches, together, and added up: what one expert after the other adds to all its tokens."""
    random, cpu = np.random.default_rng(seed), CpuBackend(2, exact=exact)
    layout = RecordLayout.of(ExpertShape(192, 96), dict.fromkeys(PROJECTIONS, parse(name)))
    records, view = [random_record(random, layout) for _ in range(6)], cpu.layout(layout)
    ids = np.array([random.permutation(6)[:k] for _ in range(tokens)], np.int32)
    routes, x = Routes(ids, random.random((tokens, k)).astype(np.float32)), floats(random, tokens, 192)
    wanted = np.zeros((tokens, 192), np.float32)
    for expert, own, shares in routes.by_expert():
        cpu.expert(wanted, x, records[expert], view, own, shares)
    visits, parts, came = routes.visits, np.empty((tokens * k, 192), np.float32), list[int]()
    for batch in np.array_split(random.permutation(list(visits)), 2):
        cpu.experts(x, [records[i] for i in batch], view, [visits[i] for i in batch], parts[len(came) :])
        came += [pair_of(token, int(expert)) for expert in batch for token in visits[expert]]
    assert np.array_equal(cpu.combine(parts, came, routes), wanted)


def test_misfits_are_refused_before_anything_is_read() -> None:
    layout = RecordLayout.of(ExpertShape(64, 32), dict.fromkeys(PROJECTIONS, parse("affine2-g32")))
    record, view = random_record(np.random.default_rng(0), layout), CPU.layout(layout)
    one, two = (CPU.shared(np.zeros((tokens, 64), np.float32)) for tokens in (1, 2))
    room = np.zeros((2, 64), np.float32)
    for records, tokens, x, to in (
        ([record[:-20000]], [[0]], one, room),
        ([record], [[0, 1]], one, room),
        ([record], [[-1]], one, room),
        ([record], [[0], [0]], one, room),
        ([record], [[0, 1]], two, room[:1]),
    ):
        with pytest.raises(ValueError, match="experts: "):
            _native.experts(CPU._pool, view, records, tokens, x, to)
    ids, weights = np.array([[0, 2]], np.int32), np.ones((1, 2), np.float32)
    for came in [0, 1], [0, 0], [0], [0, pair_of(1, 2)]:
        with pytest.raises(ValueError, match=r"no such part|do not fit"):
            _native.combine(CPU._pool, room, came, ids, weights, room[:1])
    with pytest.raises(ValueError, match="as many outputs"):
        _native.matmul(CPU._pool, [], one, [room])


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("names", [("affine3-g64", "affine8-g64"), ("affine8-g64", "affine3-g64")])
def test_formats_that_are_multiplied_by_other_ways_go_together(names: tuple[str, str], tokens: int) -> None:
    random = np.random.default_rng(3)
    gate, up = (CPU.matrix(coded(random, 41, 192, parse(name))) for name in names)
    x = floats(random, tokens, 192)
    alone = [CPU.swiglu(x[t : t + 1], gate, up) for t in range(tokens)]
    assert np.array_equal(CPU.swiglu(x, gate, up), np.concatenate(alone))


PRODUCTS = """
import numpy as np
from matrices import coded, floats, highest
from moepack.layout.formats import FORMATS
from moepack.runtime import _native
from moepack.runtime.backends.cpu import CpuBackend
cpu, random, results = CpuBackend(1), np.random.default_rng(0), []
for format_ in FORMATS:
    matrix, x = cpu.matrix(coded(random, 40, 640, format_)), floats(random, 11, 640)
    full = cpu.matrix(highest(random, 40, 640, format_))
    alone = [cpu.linear(x[t : t + 1], matrix) for t in range(11)]
    for tokens in (2, 3, 4, 5, 7, 11):
        results.append(cpu.linear(x[:tokens], matrix))
        assert np.array_equal(results[-1], np.concatenate(alone[:tokens]))
    results.append(alone[0])
    results += [cpu.linear(sign * np.ones_like(x[:tokens]), full) for sign in (1, -1) for tokens in (1, 11)]
np.savez(sys.argv[1], np.concatenate(results))
print(_native.instruction_set())
"""


def test_every_instruction_set_rounds_alike(tmp_path: Path) -> None:
    found = saved_on_every_set(PRODUCTS, tmp_path)
    assert _native.instruction_set() in found
    assert agree(found)
    (first,), *others = found.values()
    assert all(np.abs(got - first).max() <= 3e-6 * np.abs(first).max() for (got,) in others)
