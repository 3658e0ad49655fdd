"""Kernels written for the purpose, against numpy: what the translation rewrites, the library, and who runs when."""

from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from metal.limits import MAX_THREADS, SIMD_WIDTH
from metal.msl.launch import Binding, Grid, LaunchError, Order, launch
from metal.msl.program import Argument, Mode, Program

LANGUAGE = Path(__file__).parent / "language"
ORDERS = [Order.FORWARD, Order.REVERSE, Order(5)]


@cache
def program(name: str, mode: Mode = Mode.FAST, words: str = "1000") -> Program:
    path = LANGUAGE / f"{name}.metal"
    return Program.compile(f'#line 1 "{path.name}"\n{path.read_text()}', {"WORDS": words}, mode)


def run(compiled: Program, kernel: str, grid: Grid, *arrays: np.ndarray, order: Order = Order.FORWARD, **more) -> None:
    bindings = [Binding(i, array.ctypes.data, array.nbytes) for i, array in enumerate(arrays)]
    faults = launch(compiled, kernel, grid, bindings, order=order, **more)
    assert not faults, "\n".join(map(str, faults))


def line(threads: int, of: int = MAX_THREADS) -> Grid:
    return Grid.exact((threads, 1, 1), (min(threads, of), 1, 1))


def by_simdgroup(x: np.ndarray, function) -> np.ndarray:
    """`function` of every SIMD group's values, for all of its lanes."""
    groups = x.reshape(-1, SIMD_WIDTH)
    return np.concatenate([np.broadcast_to(function(group), SIMD_WIDTH) for group in groups])


FLOATS = {
    "sum": np.sum,
    "largest": np.max,
    "smallest": np.min,
    "product": lambda v: np.prod(1 + v / 64),
    "broadcast": lambda v: v[5],
    "first": lambda v: v[0],
    "reversed": lambda v: v[::-1],
    "butterfly": lambda v: v[np.arange(32) ^ 9],
    "down": lambda v: np.concatenate([v[3:], v[29:]]),
    "up": lambda v: np.concatenate([v[:3], v[:29]]),
    "rotated": lambda v: np.roll(v, -3),
    "filled": lambda v: np.concatenate([v[3:], -v[:3]]),
    "quad": lambda v: np.repeat(v.reshape(8, 4).sum(1), 4),
    "vector": lambda v: 2 * v.sum(),
    "chain": np.sum,
}
INTEGERS = {
    "inclusive": np.cumsum,
    "exclusive": lambda v: np.cumsum(v) - v,
    "largest_int": np.max,
    "smallest_int": np.min,
    "bits_and": np.bitwise_and.reduce,
    "bits_or": np.bitwise_or.reduce,
    "bits_xor": np.bitwise_xor.reduce,
    "is_first": lambda v: (np.arange(32) == 0).astype(np.int64),
    "any_large": lambda v: int((v > 90).any()),
    "all_small": lambda v: int((v < 90).all()),
    "ballot": lambda v: int(((v > 50) << np.arange(32)).sum().astype(np.uint32).view(np.int32)),
}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("name", FLOATS)
def test_functions_of_a_simdgroup(name: str, order: Order, mode: Mode) -> None:
    x = np.random.default_rng(0).normal(size=128).astype(np.float32)
    y = np.empty_like(x)
    run(program("simdgroup", mode), name, line(128), x, y, order=order)
    assert np.allclose(y, by_simdgroup(x.astype(np.float64), FLOATS[name]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("name", INTEGERS)
def test_functions_of_a_simdgroup_on_integers(name: str, order: Order) -> None:
    x = np.random.default_rng(1).integers(-100, 100, 128).astype(np.int32)
    y = np.empty_like(x)
    run(program("simdgroup"), name, line(128), x, y, order=order)
    assert np.array_equal(y, by_simdgroup(x.astype(np.int64), INTEGERS[name]))


def test_sums_of_halves_are_halves() -> None:
    x = np.random.default_rng(2).normal(size=32).astype(np.float16)
    y = np.empty_like(x)
    run(program("simdgroup"), "sum_of_halves", line(32), x, y)
    assert abs(float(y[0]) - x.astype(np.float64).sum()) < 0.02


@pytest.mark.parametrize("name", ["sum", "largest", "smallest", "inclusive", "quad"])
def test_a_simdgroup_may_be_incomplete(name: str) -> None:
    """The last of 45 threads make a SIMD group of 13."""
    integers = name in INTEGERS
    x = -np.arange(1, 46).astype(np.int32 if integers else np.float32)
    y = np.empty_like(x)
    run(program("simdgroup"), name, line(45), x, y)
    wanted = {
        "sum": x[32:].sum(),
        "largest": -33,
        "smallest": -45,
        "inclusive": np.cumsum(x[32:]),
        "quad": np.repeat([x[i : i + 4].sum() for i in range(32, 45, 4)], 4)[:13],
    }
    assert np.array_equal(y[32:], np.broadcast_to(wanted[name], 13))


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("transposed", [0, 1])
def test_matrices_are_multiplied(transposed: int, mode: Mode) -> None:
    random = np.random.default_rng(3)
    a, b = (random.normal(size=(8, 8)).astype(np.float16) for _ in range(2))
    c = random.normal(size=(8, 8)).astype(np.float32)
    wanted = a.astype(np.float64) @ (b.T if transposed else b).astype(np.float64) + c
    run(program("simdgroup", mode), "multiply", line(32), a, b, c, np.array([transposed], np.uint32))
    assert np.allclose(c, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", Mode)
def test_a_matrix_is_a_piece_of_a_larger_one(mode: Mode) -> None:
    x = np.arange(256, dtype=np.float32).reshape(16, 16)
    y = np.empty((8, 8), np.float32)
    run(program("simdgroup", mode), "piece", line(32), x, y)
    assert np.array_equal(y, 2 * x[2:10, 5:13])


def test_literals_are_float32() -> None:
    y = np.empty(7, np.float32)
    run(program("language"), "literals", line(1), y)
    wanted = [0.1, np.float32(1e-3) + np.float32(2) + np.float32(0.5), 100, np.float16(0.1), 0, 16777216, 17]
    assert np.array_equal(y, np.array(wanted, np.float32))


def test_vectors_are_made_and_mixed() -> None:
    y = np.zeros((7, 4), np.float32)
    shape = np.array([1, 2, 0, 0, *np.array([1, 2, 3, 4], np.float32).view(np.uint32)], np.uint32)
    run(program("language"), "vectors", line(1), y, shape)
    wanted = [
        [4, 3, 2, 1],
        [2, 2, 2, 4],
        [1, 250, 1, 2],
        [1.5, 2.5, 3.5, 4.5],
        [-16, 5, 10, 5],
        [1, 1, 2, 2],
        [0, 0.5, 1, 0],
    ]
    assert np.array_equal(y, np.array(wanted, np.float32))


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_every_thread_knows_its_place(order: Order) -> None:
    """Threads that do not fill the last threadgroups make smaller ones."""
    threads, size = (6, 3, 2), (4, 2, 1)
    y = np.zeros((36, 24), np.uint32)
    run(program("language"), "places", Grid.exact(threads, size), y, order=order)
    for z, y_, x in np.ndindex(threads[::-1]):
        at = np.array([x, y_, z])
        group, within = at // size, at % size
        here = np.minimum(size, np.array(threads) - group * size)
        index = within[0] + here[0] * (within[1] + here[1] * within[2])
        wanted = [*at, *within, *group, *here[:2], 4, 2, 2, 2, 2, *threads, index, index, 0, 1, 32]
        assert y[x + 6 * (y_ + 3 * z)].tolist() == wanted


@pytest.mark.parametrize(
    ("name", "dtype", "rows"),
    [("scaled_float", np.float32, 4), ("scaled_half", np.float16, 2), ("scaled_bfloat", ml_dtypes.bfloat16, 2)],
)
@pytest.mark.parametrize("mode", Mode)
def test_kernel_templates_have_names_and_threadgroup_arrays(name: str, dtype, rows: int, mode: Mode) -> None:
    x = np.arange(rows * 4).astype(dtype)
    y = np.zeros_like(x)
    run(program("language", mode), name, line(rows * 4), x, y)
    wanted = (x.reshape(rows, 4)[::-1] * rows).ravel() + x[-1]
    assert np.array_equal(y, wanted.astype(dtype))


def test_signatures_tell_what_a_kernel_wants() -> None:
    kernels = program("language").kernels
    assert kernels["vectors"].arguments == (
        Argument(0, "buffer", "y", 16, 16, "device", writable=True),
        Argument(1, "buffer", "shape", 32, 16, "constant", writable=False),
    )
    assert kernels["scaled_half"].arguments[0] == Argument(0, "buffer", "x", 2, 2, "device", writable=False)
    assert kernels["leftovers"].arguments[1] == Argument(0, "threadgroup", "t", 4, 4, "threadgroup", writable=True)
    assert (kernels["small_groups"].max_threads, kernels["bits"].max_threads) == (64, MAX_THREADS)
    assert "scaled" not in kernels


def test_bits_and_roundings() -> None:
    x = np.array([0x3FC00000, 0x40000000, 0x40490000, 0xFE000000, 0x00F0, 4099], np.uint32)
    y = np.empty(7, np.float32)
    run(program("language"), "bits", line(1), x, y)
    assert y.tolist() == [1.5, 2.0, 3.140625, -2.0, 4 + 100 * 24 + 10000 * 4, 4100.0, 4096.0]


def test_halves_are_rounded_after_every_operation() -> None:
    x = np.array([1.01, 1.01, -1.02], np.float16)
    y = np.empty(1, np.float16)
    run(program("language"), "rounded_each_time", line(1), x, y)
    assert y[0] == x[0] * x[1] + x[2]
    assert y[0] != np.float16(np.float32(x[0]) * np.float32(x[1]) + np.float32(x[2]))


def test_maths_functions_are_numpys() -> None:
    x = np.linspace(-3, 3, 25, dtype=np.float32)
    y = np.empty((25, 12), np.float32)
    run(program("language"), "maths", line(25), x, y)
    v = x.astype(np.float64)
    wanted = [np.exp(v), np.log(abs(v) + 1), 1 / np.sqrt(v * v + 1), np.tanh(v), np.sin(v), abs(v) ** 1.5]
    wanted += [v, np.rint(v), v, v, np.sign(v), v * v - v]
    assert np.allclose(y, np.stack(wanted, 1), rtol=1e-6, atol=1e-6)


def turns(order: Order, groups: int = 3, threads: int = 96, workers: int = 1) -> np.ndarray:
    who = np.full(groups * threads, -1, np.int32)
    grid = Grid((groups, 1, 1), (threads, 1, 1))
    run(program("language"), "turns", grid, np.zeros(1, np.uint32), who, order=order, workers=workers)
    return who


def test_orders_are_orders_of_lanes_simdgroups_and_threadgroups() -> None:
    assert np.array_equal(turns(Order.FORWARD), np.arange(288))
    assert np.array_equal(turns(Order.REVERSE), np.arange(288)[::-1])


def test_a_seed_is_an_order_of_its_own_and_always_the_same() -> None:
    one, other = turns(Order(1)), turns(Order(2))
    assert np.array_equal(one, turns(Order(1)))
    assert not np.array_equal(one, other)
    for who in (one, other):
        assert np.array_equal(np.sort(who), np.arange(288))
        lanes, simdgroups = who[:32] % 32, who[::32] // 32
        assert not np.array_equal(lanes, np.sort(lanes))
        assert len(set(simdgroups.tolist())) == 9


def test_seeds_shuffle_threadgroups_and_simdgroups() -> None:
    firsts = {int(turns(Order(seed))[0]) // 32 for seed in range(40)}
    assert firsts == set(range(9))


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("mode", Mode)
def test_nothing_is_lost_by_atomics_however_many_threads_there_are(workers: int, mode: Mode) -> None:
    counts, total, low = np.zeros(4, np.uint32), np.zeros(1, np.float32), np.zeros(1, np.int32)
    grid = Grid((50, 1, 1), (96, 1, 1))
    run(program("language", mode), "atomics", grid, counts, total, low, workers=workers)
    n = 50 * 96
    assert counts.tolist() == [n * (n - 1) // 2, n - 1, 0xFFFFFFFF, 2 * n]
    assert (total[0], low[0]) == (n / 2, 1 - n)


def test_threadgroup_memory_begins_as_nan_in_every_threadgroup() -> None:
    y = np.zeros(128, np.uint32)
    run(program("language"), "leftovers", Grid((5, 1, 1), (64, 1, 1)), y, threadgroup_lengths={0: 256}, workers=1)
    assert (y == 0xFFFFFFFF).all()


def test_a_thread_may_have_large_variables_but_not_any_size() -> None:
    y = np.array([1, 2, 3, 0], np.float32)
    run(program("language", words="16000"), "deep", line(1), y)
    assert y[0] == 4000 * (1 + 2 + 3)
    compiled, y = program("language", words="66000"), np.array([1, 2, 3, 0], np.float32)
    [fault] = launch(compiled, "deep", line(1), [Binding(0, y.ctypes.data, y.nbytes)])
    assert fault.kind == "stack"


def test_programs_are_kept_by_source_macros_and_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = "kernel void k(device float* y [[buffer(0)]]) { y[0] = A; }"
    for macro in ("1", "2", "1", "2"):
        y = np.zeros(1, np.float32)
        run(Program.compile(source, {"A": macro}, Mode.FAST), "k", line(1), y)
        assert y[0] == int(macro)
    assert len(list(tmp_path.rglob("*.so"))) == 2
    Program.compile(source, {"A": "1"}, Mode.CHECKED)
    assert len(list(tmp_path.rglob("*.so"))) == 3


def test_impossible_launches_are_refused() -> None:
    compiled, y = program("language"), np.zeros(4, np.float32)
    binding = [Binding(0, y.ctypes.data, y.nbytes)]
    for kernel, grid, bindings, message in [
        ("nothing", line(1), binding, "there is no kernel nothing; there are literals, "),
        (
            "small_groups",
            line(65),
            binding,
            "65 threads per threadgroup are more than kernel small_groups can have, which is 64",
        ),
        ("literals", Grid((1, 1, 1), (1025, 1, 1)), binding, "which is 1024"),
        ("literals", Grid((0, 1, 1), (1, 1, 1)), binding, "the grid of kernel literals is empty"),
        ("literals", line(1), [], r"kernel literals has nothing bound to \[\[buffer\(0\)\]\] y"),
        ("leftovers", line(1), binding, r"kernel leftovers has no length for \[\[threadgroup\(0\)\]\] t"),
    ]:
        with pytest.raises(LaunchError, match=message):
            launch(compiled, kernel, grid, bindings)
