"""Mutants of choices, the router's and the sampler's, and of what experts give being added up."""

from extended.mutants.mutant import Kind, of

ROUTER = ("tests/metal/test_router.py", "-k", "router")
TOP_K = ("tests/metal/test_choosing.py",)
SUMS = ("tests/metal/test_expert_slots.py", "-k", "sum")

_router = of("runtime/kernels/metal/router.metal", ROUTER)
_top_k = of("runtime/kernels/metal/sampling.metal", TOP_K)
_combine = of("runtime/kernels/metal/combine.metal", SUMS)

MUTANTS = [
    _router("of a lane's equal experts the last", Kind.BY_ONE, "values[i] > own.value", "values[i] >= own.value"),
    _router(
        "what was chosen may be chosen again",
        Kind.OPERATION,
        "== best.id) values[i] = -1.0f",
        "== best.id) values[i] = 0.0f",
    ),
    _router(
        "experts past the last may be chosen",
        Kind.GUARD,
        "precise::exp(values[i] - most) : -2.0f",
        "precise::exp(values[i] - most) : 1.0f",
    ),
    _router(
        "logits past the last are read",
        Kind.GUARD,
        "i * LANES + lane < NUM_EXPERTS ? finite(logits[i * LANES + lane]) : -LARGEST",
        "finite(logits[i * LANES + lane])",
    ),
    _router("each lane against its own largest", Kind.SIMD, "  most = simd_max(most);\n", ""),
    _router(
        "what is not a number counts as the largest",
        Kind.OPERATION,
        "!(logit > -LARGEST) ? -LARGEST : min(logit, LARGEST)",
        "!(logit <= LARGEST) ? LARGEST : max(logit, -LARGEST)",
    ),
    _router(
        "a rank counts the expert itself", Kind.BY_ONE, "simd_broadcast(id, k) < id", "simd_broadcast(id, k) <= id"
    ),
    _router(
        "the last lane leaves before its id is asked for",
        Kind.SIMD,
        "  const uint rank = rank_of(chosen.id), start =",
        "  if (lane + 1 >= NUM_EXPERTS_PER_TOK) return;\n  const uint rank = rank_of(chosen.id), start =",
    ),
    _router(
        "a token's choice is written over the one before",
        Kind.STRIDE,
        "start = token * NUM_EXPERTS_PER_TOK",
        "start = token * (NUM_EXPERTS_PER_TOK - 1)",
    ),
    _router("weights are not renormalised", Kind.MISSING, "chosen.value / total", "chosen.value"),
    _router("order is the inverse", Kind.PLACE, "order[start + rank] = lane", "order[start + lane] = rank"),
    _router("logits of the first token for all", Kind.PLACE, "logits + ulong(token) * NUM_EXPERTS", "logits"),
    _top_k(
        "what was found is overwritten while it is read",
        Kind.BARRIER,
        "  threadgroup_barrier(mem_flags::mem_threadgroup);  // what was found before has been read\n",
        "",
    ),
    _top_k(
        "what is found is read while it is written",
        Kind.BARRIER,
        "  threadgroup_barrier(mem_flags::mem_threadgroup);\n  Candidate best",
        "  Candidate best",
    ),
    _top_k(
        "every lane writes what its group found",
        Kind.RACE,
        "  if (t.lane == 0) {\n    values[t.group]",
        "  {\n    values[t.group]",
    ),
    _top_k("every SIMD group writes the choice", Kind.RACE, "    if (t.index() == 0) {", "    if (t.lane == 0) {"),
    _top_k("the second SIMD group's find is left out", Kind.BY_ONE, "g = 1; g < SIMD_GROUPS", "g = 2; g < SIMD_GROUPS"),
    _top_k(
        "of equal numbers the last",
        Kind.OPERATION,
        "a.value == b.value && a.id < b.id",
        "a.value == b.value && a.id > b.id",
    ),
    _top_k(
        "a thread's numbers overlap",
        Kind.STRIDE,
        "block * BLOCK + i * THREADS + t.index()",
        "block * BLOCK + i * LANES + t.index()",
    ),
    _top_k(
        "numbers past the last are read", Kind.GUARD, "place < choice.count ? from[place] : -INFINITY", "from[place]"
    ),
    _top_k("what is not a number stays", Kind.GUARD, "isnan(value) ? -INFINITY : value", "value"),
    _top_k("places of numbers that have ids", Kind.PLACE, "choice.first ? place : from_ids[place]", "place"),
    _top_k(
        "a choice is not taken out",
        Kind.MISSING,
        "      if (own[i].id == chosen.id) own[i] = {-INFINITY, NOBODY};",
        "      if (own[i].id == NOBODY) own[i] = {-INFINITY, NOBODY};",
    ),
    _top_k("blocks write over each other", Kind.STRIDE, "values[block * choice.k + k]", "values[block + k]"),
    _combine(
        "experts in the order of likelihood",
        Kind.ORDER,
        "fma(weights[order[k]], parts[order[k] * c.hidden + at], sum)",
        "fma(weights[k], parts[k * c.hidden + at], sum)",
    ),
    _combine("weights by rank, parts by place", Kind.PLACE, "weights[order[k]], parts", "weights[k], parts"),
    _combine("elements past the last", Kind.GUARD, "  if (at >= c.hidden) return;\n", ""),
    _combine(
        "the shared expert is not gated", Kind.MISSING, "fma(sigmoid(gate[0]), shared[at], sum)", "shared[at] + sum"
    ),
    _combine("the residual stream is lost", Kind.OPERATION, "x[at] += fma", "x[at] = fma"),
    _combine("all tokens have the first one's gate", Kind.PLACE, "sigmoid(gate[at.y])", "sigmoid(gate[0])"),
    _combine(
        "rows of width tokens overlap", Kind.STRIDE, "ulong(at.y) * width + at.x", "ulong(at.y) * (width - 1) + at.x"
    ),
    _combine("swiglu past the last", Kind.GUARD, "  if (at < count) h[at]", "  h[at]"),
    _combine("a plain sum past the last", Kind.GUARD, "if (at < count) x[at] += y[at]", "x[at] += y[at]"),
    _combine("a plain sum is set", Kind.OPERATION, "x[at] += y[at]", "x[at] = y[at]"),
    _combine("zeros past the last", Kind.GUARD, "if (at < count) x[at] = 0.0f", "x[at] = 0.0f"),
]
