"""Are kernels that are known to be right on Apple GPUs right here? `make corpus`

The header with MLX's quantized products is taken from its macOS wheel (fetched with pip, kept in build/), and its
matrix-vector products run here, checked and not, against the same products by MLX on the CPU. Nothing of the header is
changed but its function constants, which get a value; what needs other headers is cut off at the first use of them.
"""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
from metal.msl.launch import Binding, Grid, Order, launch
from metal.msl.program import Mode, Program
from rich.console import Console

FOLDER = Path(__file__).parents[2] / "build" / "corpus"
HEADER = "mlx/include/mlx/backend/metal/kernels/quantized.h"
ROWS, COLS, GROUP = 64, 512, 64
TOLERANCES = {"float": 2e-6, "bfloat": 8e-3}  # of the largest result; bfloat has eight bits
PRELUDE = """#include <metal_stdlib>
using namespace metal;
template <bool C, typename A, typename B> struct ConditionalType { typedef A type; };
template <typename A, typename B> struct ConditionalType<false, A, B> { typedef B type; };
"""
KERNEL = """
kernel void {name}(device const uint* w [[buffer(0)]], device const {T}* scales [[buffer(1)]],
                   device const {T}* biases [[buffer(2)]], device const {T}* x [[buffer(3)]],
                   device {T}* y [[buffer(4)]], constant int& cols [[buffer(5)]], constant int& rows [[buffer(6)]],
                   uint3 tid [[threadgroup_position_in_grid]], uint simd [[simdgroup_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]]) {{
  {function}<{T}, {group}, {bits}>(w, scales, biases, x, y, cols, rows, tid, simd, lane);
}}
"""
CASES = [
    (function, T, bits) for function in ("qmv_fast_impl", "qmv_impl") for T in TOLERANCES for bits in (2, 3, 4, 6, 8)
]


def header() -> str:
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = f"mlx-metal=={version('mlx')}"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(FOLDER),
    ]
    if not list(FOLDER.glob(f"mlx_metal-{version('mlx')}-*.whl")):
        subprocess.run([*pip, "--platform=macosx_14_0_arm64", "--python-version=311", wanted], check=True)
    [wheel] = FOLDER.glob(f"mlx_metal-{version('mlx')}-*.whl")
    text = zipfile.ZipFile(wheel).read(HEADER).decode()
    text = re.sub(r"\[\[function_constant\(\d+\)\]\]", "= true", text)
    return text[: text.rindex("template <", 0, text.index("METAL_FUNC void qmm_t_impl("))]


def source() -> str:
    kernels = [
        KERNEL.format(name=f"{function}_{T}_{bits}", function=function, T=T, group=GROUP, bits=bits)
        for function, T, bits in CASES
    ]
    return f'{PRELUDE}#line 1 "quantized.h"\n{header()}\n#line 1 "kernels"\n{"".join(kernels)}'


def inputs(T: str, bits: int) -> tuple[list[mx.array], np.ndarray]:
    """Codes, scales, biases and x as MLX has them, and the product by MLX's CPU kernels, in float32."""
    mx.set_default_device(mx.cpu)
    random = np.random.default_rng(bits)
    dtype = {"float": mx.float32, "bfloat": mx.bfloat16}[T]
    weights, x = (
        mx.array(random.normal(size=size).astype(np.float32)).astype(dtype) for size in ((ROWS, COLS), (1, COLS))
    )
    codes, scales, biases = mx.quantize(weights, GROUP, bits)
    wide = [each.astype(mx.float32) for each in (x, scales, biases)]
    product = mx.quantized_matmul(wide[0], codes, wide[1], wide[2], True, GROUP, bits)
    return [codes, scales, biases, x], np.array(product)[0]


def bytes_of(array: mx.array) -> np.ndarray:
    return np.array(array.view(mx.uint8)).ravel()


def difference(program: Program, function: str, T: str, bits: int) -> float:
    """The largest, of the largest result; in three orders."""
    given, wanted = inputs(T, bits)
    worst = 0.0
    for order in (Order.FORWARD, Order.REVERSE, Order(3)):
        y = np.zeros(ROWS, np.uint32 if T == "float" else np.uint16)
        arrays = [*map(bytes_of, given), y, np.array([COLS], np.int32), np.array([ROWS], np.int32)]
        bindings = [Binding(i, array.ctypes.data, array.nbytes) for i, array in enumerate(arrays)]
        faults = launch(program, f"{function}_{T}_{bits}", Grid((1, ROWS // 8, 1), (32, 2, 1)), bindings, order=order)
        assert not faults, faults[0]
        got = y.view(np.float32) if T == "float" else (y.astype(np.uint32) << 16).view(np.float32)
        worst = max(worst, float(np.abs(got - wanted).max() / np.abs(wanted).max()))
    return worst


def main() -> None:
    console, text = Console(), source()
    for mode in Mode:
        program = Program.compile(text, {}, mode)
        for function, T, bits in CASES:
            worst = difference(program, function, T, bits)
            console.print(f"{mode.value:8} {function:14} {T:7} {bits} bits: {worst:.1e}")
            assert worst <= TOLERANCES[T], "this differs from MLX"


if __name__ == "__main__":
    main()
