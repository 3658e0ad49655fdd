"""What the host believes of kernels is what their sources say; sources are whole; and they are shipped."""

import struct
from importlib.resources import files

import numpy as np
import pytest
from metal.running import Kernel

from moepack.runtime.backends.metal import launches
from moepack.runtime.backends.metal.library import KERNELS, Build, many_products
from moepack.runtime.backends.metal.sources import FOLDER, library_source, source_line

PLACE = launches.MatrixPlace(0, 0, 0, 0, 1, 1)
ATTENTION = {"NUM_HEADS": 4, "NUM_KV_HEADS": 2, "HEAD_DIM": 8, "ROTARY_DIMS": 4}
DELTA = {"NUM_KEY_HEADS": 1, "NUM_VALUE_HEADS": 1, "KEY_HEAD_DIM": 8, "VALUE_HEAD_DIM": 8, "CONV_KERNEL": 4}
RECORD = {
    **dict.fromkeys(("GATE", "UP", "DOWN"), "Affine<2, 32, Bf16>"),
    **{f"{name}_{part}": 0 for name in ("GATE", "UP", "DOWN") for part in ("WEIGHT", "SCALES", "BIASES", "GRIDS")},
    "HIDDEN_SIZE": 32,
    "MOE_INTERMEDIATE_SIZE": 32,
}
CONSTANTS: list[tuple[Build, dict[str, int]]] = [
    (
        Build.of("matvec.metal", {"MATRIX": "Floats<F32>"}),
        {
            "LANES": launches.LANES,
            "SIMD_GROUPS": launches.SIMD_GROUPS,
            "THREADS": launches.THREADS,
            "PIECE": launches.PIECE,
            "TILE": launches.TILE,
            "ROWS_AT_ONCE": launches.ROWS_AT_ONCE,
            "sizeof(Matrix)": len(PLACE.packed),
            "sizeof(Product)": len(PLACE.product(0)),
        },
    ),
    (Build.of("experts.metal", RECORD), {"ARENAS": launches.ARENAS, "sizeof(Slot)": len(launches.slot(0, 0))}),
    (
        many_products("Floats<F32>", 3),
        {
            "MATMUL_THREADS": launches.MATMUL_THREADS,
            "OUT_ROWS": launches.OUT_ROWS,
            "TOKENS": 3 * launches.TOKEN_BLOCK,
            "sizeof(Batch)": len(PLACE.batch(1)),
        },
    ),
    (
        Build.of("attention.metal", ATTENTION),
        {
            "QUERIES * SIMD_GROUPS": launches.QUERIES_AT_ONCE,
            "sizeof(Chunk)": len(launches.AttentionChunk(0, 1, 1, 0.0).packed),
        },
    ),
    (Build.of("delta.metal", DELTA), {"SHARES * LANES": launches.RULE_THREADS}),
    (
        Build("sampling.metal"),
        {"BLOCK": launches.CHOICE_BLOCK, "sizeof(Choice)": len(launches.choice(1, 1, first=True))},
    ),
    (
        Build("norms.metal"),
        {"sizeof(Norm)": len(launches.norm(1, 0.0)), "sizeof(GatedNorm)": len(launches.gated_norm(1, 0.0, 1))},
    ),
    (Build("combine.metal"), {"sizeof(Combination)": len(launches.combination(1, 1))}),
]


@pytest.mark.parametrize(("build", "known"), CONSTANTS, ids=[build.file for build, _ in CONSTANTS])
def test_the_host_knows_the_kernels_constants(build: Build, known: dict[str, int]) -> None:
    writes = "".join(f"  to[{i}] = {name};\n" for i, name in enumerate(known))
    source = f"{build.source}\nkernel void tell(device uint* to [[buffer(0)]]) {{\n{writes}}}\n"
    (got,) = Kernel("tell", source, 1)((1, 1, 1), np.zeros(len(known), np.uint32), check=False)
    assert dict(zip(known, got.tolist(), strict=True)) == known


def test_every_kernel_has_its_threads() -> None:
    """No file and no kernel is missing from the table that pipelines are made by."""
    found = {path.name: set(kernel_names(path.read_text())) for path in FOLDER.glob("*.metal")}
    assert found == {file: set(kernels) for file, kernels in KERNELS.items()}


def kernel_names(text: str) -> list[str]:
    return [line.split("(")[0].removeprefix("kernel void ") for line in text.splitlines() if line.startswith("kernel ")]


def test_headers_are_put_in_place_once_and_lines_keep_their_names() -> None:
    text = library_source("matvec.metal", {"MATRIX": "Affine<4, 64, Bf16>"})
    assert text.startswith("#define MATRIX Affine<4, 64, Bf16>\n")
    assert '#include "' not in text
    assert [text.count(f'#line 1 "{name}"') for name in ("matvec.metal", "rows.h", "codes.h", "numbers.h")] == [1] * 4
    lines = text.splitlines()
    after = lines.index("kernel void matvec(device const uchar* weights [[buffer(0)]],")
    marker = max(i for i in range(after) if lines[i].startswith("#line") and lines[i].endswith('"matvec.metal"'))
    number = int(lines[marker].split()[1]) + after - marker - 1
    assert source_line("matvec.metal", number) == lines[after]


def test_lines_that_do_not_exist_are_empty() -> None:
    assert source_line("matvec.metal", 10**6) == source_line("nothing.metal", 1) == source_line("matvec.metal", 0) == ""


def test_sources_are_part_of_the_package() -> None:
    shipped = {path.name for path in files("moepack.runtime").joinpath("kernels/metal").iterdir()}
    assert shipped == {path.name for path in FOLDER.iterdir()}
    assert set(KERNELS) < shipped


def test_slots_are_packed_as_the_table_says() -> None:
    assert struct.unpack("<Q2I", launches.slot(3, 1 << 40)) == (1 << 40, 3, 0)


def test_grids_reach_what_does_not_fill_a_threadgroup() -> None:
    assert launches.experts_grid(33, 10) == (2, 10, 1)
    assert launches.products_grid(65, 3, 4) == (3, 3, 4)
    assert launches.many_products_grid(65, 33, 4) == (2, 2, 1)
    assert launches.attention_grid(9, 8, 2, 5) == (2, 2, 5)
    assert launches.delta_norm_grid(5, 3) == (2, 3, 1)
    assert launches.rule_grid(33, 7) == (2, 7, 1)
