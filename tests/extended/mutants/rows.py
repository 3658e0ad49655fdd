"""Mutants of products with one token's activations: the trunk's and the experts'."""

from extended.mutants.mutant import Kind, of

PRODUCTS = ("tests/metal/test_matvec.py::test_products_of_one_input_with_several_matrices",)
GATED = ("tests/metal/test_matvec.py::test_gated_products",)
EXPERTS = ("tests/metal/test_expert_slots.py::test_experts_read_their_records_where_the_table_says",)

_rows = of("runtime/kernels/metal/rows.h", PRODUCTS)
_matvec = of("runtime/kernels/metal/matvec.metal", PRODUCTS)
_experts = of("runtime/kernels/metal/experts.metal", EXPERTS)

MUTANTS = [
    _rows(
        "what was staged is overwritten while it is read",
        Kind.BARRIER,
        "  threadgroup_barrier(mem_flags::mem_threadgroup);  // what was staged before has been read\n",
        "",
    ),
    _rows(
        "what is staged is read while it is written",
        Kind.BARRIER,
        "? x[first + c] : 0.0f;\n  threadgroup_barrier(mem_flags::mem_threadgroup);\n",
        "? x[first + c] : 0.0f;\n",
    ),
    _rows(
        "staging waits for its SIMD group only",
        Kind.BARRIER,
        "? x[first + c] : 0.0f;\n  threadgroup_barrier(",
        "? x[first + c] : 0.0f;\n  simdgroup_barrier(",
    ),
    _rows(
        "all SIMD groups stage the same columns",
        Kind.RACE,
        "c < min(left, STAGED); c += THREADS",
        "c < min(left, STAGED); c += LANES",
    ),
    _rows(
        "staged columns lie on each other",
        Kind.PLACE,
        "return column + column / PIECE;",
        "return column - column / PIECE;",
    ),
    _rows(
        "the rest of the last tile is not cleared",
        Kind.MISSING,
        "(cols - first + TILE - 1) / TILE * TILE",
        "cols - first",
    ),
    _rows("a column past the input is staged", Kind.BY_ONE, "first + c < cols ?", "first + c <= cols ?"),
    _rows("rows of SIMD groups overlap", Kind.STRIDE, "ROWS_AT_ONCE + t.group * ROWS", "ROWS_AT_ONCE + t.group"),
    _rows(
        "columns are looked for from the first, not from the first staged",
        Kind.PLACE,
        "staged_at(tile - first +",
        "staged_at(tile +",
    ),
    _rows("rows past the last", Kind.GUARD, "    if (row + r < m.rows) sums[r] +=", "    sums[r] +="),
    _rows(
        "sums are not summed over the lanes", Kind.SIMD, "const float all = simd_sum(sum);", "const float all = sum;"
    ),
    _rows(
        "the sum is in one lane only, and not the first", Kind.SIMD, "simd_sum(sum);", "simd_prefix_inclusive_sum(sum);"
    ),
    _rows(
        "tiles that are not staged yet",
        Kind.BY_ONE,
        "tile < min(first + STAGED, m.cols)",
        "tile < min(first + STAGED + TILE, m.cols)",
    ),
    _rows(
        "the last tile is left out",
        Kind.BY_ONE,
        "tile < min(first + STAGED, gate.cols)",
        "tile + TILE < min(first + STAGED, gate.cols)",
        EXPERTS,
    ),
    _rows(
        "silu of up",
        Kind.OPERATION,
        "silu(finish<Gate>(gate, row + r, gates[r])) * finish<Up>(up, row + r, ups[r])",
        "finish<Gate>(gate, row + r, gates[r]) * silu(finish<Up>(up, row + r, ups[r]))",
        GATED,
    ),
    _rows("up with gate's format", Kind.OPERATION, "add_tile<Up>(up,", "add_tile<Gate>(up,", EXPERTS),
    _matvec(
        "results have the stride of inputs",
        Kind.STRIDE,
        "y + product.out + ulong(at.y) * m.rows",
        "y + product.out + ulong(at.y) * m.cols",
    ),
    _matvec("all products are written where the first is", Kind.PLACE, "y + product.out + ", "y + "),
    _matvec("every lane adds to the result", Kind.RACE, "  if (t.lane == 0)\n", ""),
    _matvec("results of rows that do not exist", Kind.GUARD, "r < min(row + ROWS, m.rows)", "r < row + ROWS"),
    _matvec(
        "gated inputs have the stride of results",
        Kind.STRIDE,
        "ulong(at.y) * gate.cols",
        "ulong(at.y) * gate.rows",
        GATED,
    ),
    _matvec(
        "gate for up",
        Kind.PLACE,
        "parts_of(weights, products[1].matrix)",
        "parts_of(weights, products[0].matrix)",
        GATED,
    ),
    _experts(
        "the third arena's records are looked for in the fourth",
        Kind.PLACE,
        "slot.arena == 2 ? c : d",
        "slot.arena == 2 ? d : c",
    ),
    _experts("a record's offset is left out", Kind.MISSING, ") + slot.offset;", ") + 0 * slot.offset;"),
    _experts("up with gate's scales", Kind.PLACE, "record + UP_SCALES", "record + GATE_SCALES"),
    _experts(
        "down reads h with the stride of y",
        Kind.STRIDE,
        "h + at.y * MOE_INTERMEDIATE_SIZE, staged",
        "h + at.y * HIDDEN_SIZE, staged",
    ),
    _experts("rows of y overlap", Kind.STRIDE, "y + at.y * HIDDEN_SIZE;", "y + at.y * (HIDDEN_SIZE - 1);"),
    _experts(
        "all experts read the first slot",
        Kind.PLACE,
        "record_of(slots[at.y], arena_0, arena_1, arena_2, arena_3);",
        "record_of(slots[0], arena_0, arena_1, arena_2, arena_3);",
    ),
]
