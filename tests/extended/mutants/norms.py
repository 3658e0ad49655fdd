"""Mutants of what all kernels share, and of norms."""

from extended.mutants.mutant import Kind, of

NORMS = ("tests/metal/test_router.py::test_norms",)
ROUTER = ("tests/metal/test_router.py", "-k", "router")
GATED = ("tests/metal/test_expert_slots.py", "-k", "gated or gates")
RULE = ("tests/metal/test_mixing.py::test_delta_rule",)
ATTENTION = ("tests/metal/test_mixing.py::test_attention_of_any_shape",)
PRODUCTS = ("tests/metal/test_matvec.py::test_products_of_one_input_with_several_matrices",)

_shared = of("runtime/kernels/metal/numbers.h", NORMS)
_norms = of("runtime/kernels/metal/norms.metal", NORMS)

MUTANTS = [
    _shared(
        "no barrier before the groups' sums are added up",
        Kind.BARRIER,
        "  threadgroup_barrier(mem_flags::mem_threadgroup);\n  float total",
        "  float total",
    ),
    _shared(
        "a barrier of no memory before the groups' sums are added up",
        Kind.BARRIER,
        "threadgroup_barrier(mem_flags::mem_threadgroup);\n  float total",
        "threadgroup_barrier(mem_flags::mem_none);\n  float total",
    ),
    _shared("every lane writes its group's sum", Kind.RACE, "  if (lane == 0) partial[group]", "  partial[group]"),
    _shared(
        "the last group's sum is left out",
        Kind.BY_ONE,
        "g < SIMD_GROUPS; ++g) total",
        "g + 1 < SIMD_GROUPS; ++g) total",
    ),
    _shared("a sum of squares takes one number too many", Kind.BY_ONE, "d = lane; d < width", "d = lane; d <= width"),
    _shared("squares are not summed over the lanes", Kind.SIMD, "return simd_sum(squares);", "return squares;"),
    _shared(
        "of equal candidates the highest is first",
        Kind.OPERATION,
        "simd_min(own.value == value ? own.id : NOBODY)",
        "simd_max(own.value == value ? own.id : 0)",
        ROUTER,
    ),
    _shared(
        "silu of the negative",
        Kind.OPERATION,
        "return x / (1.0f + precise::exp(-x));",
        "return x / (1.0f + precise::exp(x));",
        GATED,
    ),
    _shared("softplus is the identity too early", Kind.OPERATION, "x > 20.0f ? x", "x > 2.0f ? x", RULE),
    _shared("log(1 + e) without its correction", Kind.OPERATION, "precise::log(sum) * (e / (sum - 1.0f))", "e", RULE),
    _shared("what should be added is set", Kind.OPERATION, "*to += value", "*to = value", PRODUCTS),
    _norms(
        "rows of rms_norm overlap",
        Kind.STRIDE,
        "const ulong start = ulong(row) * norm.width;\n  float squares",
        "const ulong start = ulong(row) * (norm.width - 1);\n  float squares",
    ),
    _norms(
        "rms_norm's columns a SIMD group apart",
        Kind.STRIDE,
        "c < norm.width; c += THREADS) squares",
        "c < norm.width; c += LANES) squares",
    ),
    _norms(
        "rms_norm's threads write each other's columns",
        Kind.RACE,
        "c < norm.width; c += THREADS) y[",
        "c < norm.width; c += LANES) y[",
    ),
    _norms(
        "rms_norm without eps",
        Kind.MISSING,
        "precise::sqrt(mean + norm.eps);\n  for (uint c = thread_index",
        "precise::sqrt(mean);\n  for (uint c = thread_index",
    ),
    _norms(
        "gated_rms_norm without eps",
        Kind.MISSING,
        "precise::sqrt(mean + norm.eps);\n  for (uint c = lane",
        "precise::sqrt(mean);\n  for (uint c = lane",
    ),
    _norms("gated_rms_norm past the last row", Kind.GUARD, "  if (row >= norm.rows) return;\n", ""),
    _norms("gated_rms_norm gates with the first row's gate", Kind.PLACE, "silu(gate[start + c])", "silu(gate[c])"),
    _norms(
        "gated_rms_norm takes the sum for the mean",
        Kind.OPERATION,
        "norm.width, lane) / float(norm.width)",
        "norm.width, lane)",
    ),
]
