"""Mutants of products with many tokens' activations."""

from extended.mutants.mutant import Kind, of

PRODUCTS = ("tests/metal/test_prefill.py::test_products_of_many_tokens",)
CHOSEN = ("tests/metal/test_prefill.py::test_an_expert_sees_the_tokens_that_chose_it",)

_matmul = of("runtime/kernels/metal/matmul.metal", PRODUCTS)

MUTANTS = [
    _matmul(
        "no barrier between copying and multiplying",
        Kind.BARRIER,
        "    threadgroup_barrier(mem_flags::mem_threadgroup);\n    results.add",
        "    results.add",
    ),
    _matmul(
        "no barrier between multiplying and the next copy",
        Kind.BARRIER,
        "PITCH);\n    threadgroup_barrier(mem_flags::mem_threadgroup);\n",
        "PITCH);\n",
    ),
    _matmul(
        "no barrier between storing results and writing them",
        Kind.BARRIER,
        "2 * BLOCK);\n  threadgroup_barrier(mem_flags::mem_threadgroup);\n",
        "2 * BLOCK);\n",
    ),
    _matmul(
        "inputs lie DEPTH apart, and are read PITCH apart",
        Kind.STRIDE,
        "to[i / DEPTH * PITCH + i % DEPTH]",
        "to[i / DEPTH * DEPTH + i % DEPTH]",
    ),
    _matmul(
        "all SIMD groups copy the same inputs",
        Kind.RACE,
        "i < TOKENS * DEPTH; i += MATMUL_THREADS",
        "i < TOKENS * DEPTH; i += LANES",
    ),
    _matmul("inputs past a row's end", Kind.GUARD, "token < count && c < cols ?", "token < count ?"),
    _matmul("inputs past the last token", Kind.GUARD, "token < count && c < cols ?", "c < cols ?"),
    _matmul(
        "both threads of a row unpack the same piece", Kind.PLACE, "column / PIECE + t.index() % 2", "column / PIECE"
    ),
    _matmul("rows past the matrix's last", Kind.GUARD, "  if (row < m.rows) {", "  if (row <= m.rows) {"),
    _matmul("weights are not transposed", Kind.SIMD, "PITCH, ulong2(0, 0), true)", "PITCH, ulong2(0, 0), false)"),
    _matmul(
        "blocks of inputs half a pitch apart",
        Kind.STRIDE,
        "inputs + i * BLOCK * PITCH + c",
        "inputs + i * BLOCK * PITCH / 2 + c",
    ),
    _matmul(
        "SIMD groups' weights overlap",
        Kind.STRIDE,
        "weights + t.group * 2 * BLOCK * PITCH",
        "weights + t.group * BLOCK * PITCH",
    ),
    _matmul(
        "products of an earlier step are forgotten",
        Kind.OPERATION,
        "a[i], b[j], sums[i][j])",
        "a[i], b[j], make_filled_simdgroup_matrix<float, 8, 8>(0.0f))",
    ),
    _matmul(
        "the last columns of a step are left out", Kind.BY_ONE, "c < DEPTH; c += BLOCK", "c + BLOCK < DEPTH; c += BLOCK"
    ),
    _matmul("results are stored with the pitch of inputs", Kind.STRIDE, "j * BLOCK, OUT_ROWS)", "j * BLOCK, PITCH)"),
    _matmul("results past the last token", Kind.GUARD, "token < count && row < rows}", "row < rows}"),
    _matmul("results past the last row", Kind.GUARD, "token < count && row < rows}", "token < count}"),
    _matmul(
        "results of all SIMD groups by all threads",
        Kind.RACE,
        "i += MATMUL_THREADS) {\n    const Written w = written(i, at, batch.count, m.rows, shared);\n    if (w.exists)",
        "i += LANES) {\n    const Written w = written(i, at, batch.count, m.rows, shared);\n    if (w.exists)",
    ),
    _matmul(
        "gathered rows in the order of places",
        Kind.PLACE,
        "x + ulong(tokens[t]) * width",
        "x + ulong(t) * width",
        CHOSEN,
    ),
    _matmul(
        "scattered rows in the order of places",
        Kind.PLACE,
        "y + ulong(tokens[w.token]) * m.rows",
        "y + ulong(w.token) * m.rows",
        CHOSEN,
    ),
    _matmul(
        "a share by the token, not by its place",
        Kind.PLACE,
        "fma(shares[w.token],",
        "fma(shares[tokens[w.token]],",
        CHOSEN,
    ),
    _matmul(
        "scattered results are set",
        Kind.OPERATION,
        "fma(shares[w.token], w.value, *to)",
        "shares[w.token] * w.value",
        CHOSEN,
    ),
]
