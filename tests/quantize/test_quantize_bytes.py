"""Both methods give the bytes of the numpy reference: any format, source, thread and instruction set."""

from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
import quantize_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import printed_on_every_set

from moepack.layout.formats import BITS, GRID_FORMATS, GROUP_SIZES, AffineFormat
from moepack.quantize import _native
from moepack.quantize.affine import AffineMatrix, dequantize
from moepack.quantize.calibration import InputStatistics
from moepack.quantize.methods import DATA_FREE_METHODS as METHODS
from moepack.quantize.methods import quantize

FORMATS = st.builds(AffineFormat, st.sampled_from(BITS), st.sampled_from(GROUP_SIZES))
FLOATS = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
KINDS = ["normal", "heavy", "few", "constant", "zeros", "denormal", "large", "offset"]


def weights_of(kind: str, rows: int, cols: int, seed: int) -> np.ndarray:
    """float32 [rows, cols] that fit in float16 too, except for the denormal and large kinds."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((rows, cols)).astype(np.float32)
    return {
        "normal": normal,
        "heavy": rng.standard_t(3, (rows, cols)).astype(np.float32),
        "few": rng.integers(0, 4, (rows, cols)).astype(np.float32),
        "constant": np.full((rows, cols), normal[0, 0]),
        "zeros": np.where(normal > 0, np.float32(0), np.float32(-0.0)),
        "denormal": (normal * 50).astype(np.int32).astype(np.float32) * np.float32(2**-149),
        "large": np.clip(normal, -3, 3) * np.float32(2e37),
        "offset": normal * np.float32(0.01) + np.float32(100),
    }[kind]


def raw(matrix: AffineMatrix) -> bytes:
    return b"".join(np.ascontiguousarray(a).tobytes() for a in (matrix.codes, matrix.scales, matrix.biases))


def same_bytes(weights: np.ndarray | AffineMatrix, format: AffineFormat, method: str) -> bool:
    return raw(quantize(weights, format, method)) == raw(reference.quantize(weights, format, method))


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(KINDS), st.sampled_from(FLOATS), FORMATS, st.sampled_from(METHODS), st.integers(1, 9),
    st.integers(1, 3), st.integers(0, 2**32),
)  # fmt: skip
def test_float_sources(
    kind: str, dtype: np.dtype, format: AffineFormat, method: str, rows: int, width: int, seed: int
) -> None:
    if dtype == np.float16 and kind in ("denormal", "large"):
        kind = "normal"
    assert same_bytes(weights_of(kind, rows, 128 * width, seed).astype(dtype), format, method)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(KINDS), st.sampled_from(FLOATS), FORMATS, FORMATS, st.sampled_from(METHODS), st.integers(1, 9),
    st.booleans(), st.integers(0, 2**32),
)  # fmt: skip
def test_affine_sources(
    kind: str,
    dtype: np.dtype,
    source: AffineFormat,
    format: AffineFormat,
    method: str,
    rows: int,
    reverse: bool,
    seed: int,
) -> None:
    if dtype == np.float16 and kind in ("denormal", "large"):
        kind = "normal"
    matrix = quantize(weights_of(kind, rows, 256, seed), source, "minmax")
    scales, biases = matrix.scales.astype(dtype), matrix.biases.astype(dtype)
    signs = np.where(np.random.default_rng(seed).random(scales.shape) < 0.5 * reverse, -1, 1).astype(dtype)
    matrix = AffineMatrix(source, matrix.codes, scales * signs, biases)
    assert np.array_equal(dequantize(matrix), reference.dequantize(matrix))
    assert same_bytes(matrix, format, method)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_the_default_pack_from_4_bits(kind: str, method: str) -> None:
    source = quantize(weights_of(kind, 67, 512, 1), AffineFormat(4, 64), "minmax")
    assert same_bytes(source, AffineFormat(2, 64), method)


@pytest.mark.parametrize("method", METHODS)
def test_requantising_exact_affine_data_keeps_it(method: str) -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 4, (5, 128))
    codes[:, [0, 64]], codes[:, [1, 65]] = 0, 3
    scales, biases = (rng.integers(1, 9, (5, 2)).astype(ml_dtypes.bfloat16) for _ in range(2))
    matrix = AffineMatrix(AffineFormat(2, 64), reference.pack(codes, 2), scales, biases)
    assert raw(quantize(matrix, matrix.format, method)) == raw(matrix)
    assert raw(quantize(dequantize(matrix), matrix.format, method)) == raw(matrix)


def test_every_matrix_is_the_same_from_four_threads() -> None:
    weights = weights_of("heavy", 64, 512, 5)
    source = quantize(weights, AffineFormat(4, 64), "minmax")
    jobs = [(w, AffineFormat(2, 64), method) for w in (weights, source) for method in METHODS] * 8
    with ThreadPoolExecutor(4) as pool:
        results = [raw(result) for result in pool.map(lambda job: quantize(*job), jobs)]
    assert results == [raw(quantize(*job)) for job in jobs]


def test_out_may_be_views_into_a_larger_buffer() -> None:
    weights, format = weights_of("normal", 6, 128, 7), AffineFormat(2, 64)
    expected, buffer = quantize(weights, format, "mse"), np.full(1001, 0xAA, np.uint8)
    edges = np.cumsum([101, expected.codes.nbytes, expected.scales.nbytes, expected.biases.nbytes])
    codes, scales, biases = (buffer[a:b] for a, b in pairwise(edges))
    shape = expected.scales.shape
    views = scales.view(ml_dtypes.bfloat16).reshape(shape), biases.view(ml_dtypes.bfloat16).reshape(shape)
    out = AffineMatrix(format, codes.view(np.uint32).reshape(expected.codes.shape), *views)
    assert quantize(weights, format, "mse", out) is out
    assert buffer[101 : edges[-1]].tobytes() == raw(expected)
    assert set(buffer[:101]) | set(buffer[edges[-1] :]) == {0xAA}


def digest_of_many() -> str:
    """What this process's instruction set makes of every method, source and a spread of formats."""
    digest = sha256()
    importance = np.exp(np.random.default_rng(12).standard_normal(384)).astype(np.float32)
    statistics = InputStatistics(importance)
    for kind in KINDS:
        weights = weights_of(kind, 23, 384, 11)
        source = quantize(weights, AffineFormat(4, 64), "minmax")
        digest.update(dequantize(source).tobytes())
        for format in (AffineFormat(2, 32), AffineFormat(2, 64), AffineFormat(2, 128), AffineFormat(4, 64)):
            for method in (*METHODS, "imatrix"):
                for one in (weights, source):
                    digest.update(raw(quantize(one, format, method, statistics=statistics)))
        for grids in GRID_FORMATS:
            for method in ("mse", "imatrix"):
                for one in (weights, source):
                    matrix = quantize(one, grids, method, statistics=statistics)
                    digest.update(matrix.codes.tobytes() + matrix.grids.tobytes() + matrix.scales.tobytes())
                    digest.update(dequantize(matrix).tobytes())
    return digest.hexdigest()


def test_every_instruction_set_of_this_machine_gives_the_same_bytes() -> None:
    assert _native.INSTRUCTION_SETS[0] == "baseline"
    assert len(printed_on_every_set(__file__)) == 1


if __name__ == "__main__":
    print(_native.instruction_set(), digest_of_many())
