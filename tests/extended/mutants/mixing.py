"""Mutants of attention and of Gated DeltaNet."""

from extended.mutants.mutant import Kind, of

SHAPES = ("tests/metal/test_mixing.py::test_attention_of_any_shape",)
ATTENTION = ("tests/metal/test_mixing.py", "-k", "not delta")
RULE = ("tests/metal/test_mixing.py::test_delta_rule",)

_attention = of("runtime/kernels/metal/attention.metal", SHAPES)
_any = of("runtime/kernels/metal/attention.metal", ATTENTION)
_delta = of("runtime/kernels/metal/delta.metal", RULE)

MUTANTS = [
    _attention(
        "queries lie a head apart", Kind.STRIDE, "query_gate + row * 2 * HEAD_DIM", "query_gate + row * HEAD_DIM"
    ),
    _attention(
        "the second half turns the other way",
        Kind.OPERATION,
        "cos[d - HALF] + normed(d - HALF)",
        "cos[d - HALF] - normed(d - HALF)",
    ),
    _attention(
        "one dimension too many is turned", Kind.BY_ONE, "if (d < 2 * HALF) return", "if (d <= 2 * HALF) return"
    ),
    _attention("all tokens turn as the first", Kind.PLACE, "cos + token * HALF, *const", "cos, *const"),
    _attention(
        "keys are written at the chunk's start",
        Kind.MISSING,
        "from + ulong(chunk.position) * NUM_KV_HEADS * HEAD_DIM",
        "from + 0 * ulong(chunk.position)",
    ),
    _attention(
        "the cache's rows have one head",
        Kind.STRIDE,
        "ulong(chunk.position) * NUM_KV_HEADS * HEAD_DIM",
        "ulong(chunk.position) * HEAD_DIM",
    ),
    _attention("heads past the last token", Kind.GUARD, "  if (token >= chunk.tokens) return;\n", ""),
    _attention(
        "a norm without its root",
        Kind.OPERATION,
        "1.0f / precise::sqrt(sum_of_squares(x, HEAD_DIM, lane) / float(HEAD_DIM) + eps)",
        "1.0f / (sum_of_squares(x, HEAD_DIM, lane) / float(HEAD_DIM) + eps)",
    ),
    _any("a norm without eps", Kind.MISSING, "/ float(HEAD_DIM) + eps)", "/ float(HEAD_DIM))"),
    _attention("queries are not scaled", Kind.MISSING, "query[d] * share", "query[d]"),
    _attention(
        "dimensions past a head's last",
        Kind.GUARD,
        "i * LANES + lane < HEAD_DIM ? from[i * LANES + lane] : 0.0f",
        "from[i * LANES + lane]",
    ),
    _attention("scores are not summed over the lanes", Kind.SIMD, "return simd_sum(sum);", "return sum;"),
    _attention("positions past the last are read", Kind.GUARD, "ulong(min(first + n, last))", "ulong(first + n)"),
    _attention(
        "the key head is left out",
        Kind.PLACE,
        "NUM_KV_HEADS + head) * HEAD_DIM;\n      take_dims",
        "NUM_KV_HEADS) * HEAD_DIM;\n      take_dims",
    ),
    _any(
        "positions that a row does not see count for its largest score",
        Kind.GUARD,
        "    if (n < seen) most = max(most, scores[n]);",
        "    most = max(most, scores[n]);",
    ),
    _any(
        "earlier values keep their size when a larger score comes",
        Kind.MISSING,
        "  for (uint i = 0; i < OWN; ++i) p.mixed[i] *= keep;\n",
        "",
    ),
    _any("earlier sums keep their size when a larger score comes", Kind.MISSING, "  p.sum *= keep;\n", ""),
    _any(
        "exponentials are not taken against the largest",
        Kind.OPERATION,
        "precise::exp(scores[n] - most)",
        "precise::exp(scores[n])",
    ),
    _any("a token does not see itself", Kind.BY_ONE, "chunk.position + token + 1}", "chunk.position + token}"),
    _any("a token sees the next", Kind.BY_ONE, "chunk.position + token + 1}", "chunk.position + token + 2}"),
    _any("a row that sees nothing sees everything", Kind.GUARD, "row_end > p ? row_end - p : 0", "row_end - p"),
    _any(
        "query heads of a key head are taken in turn",
        Kind.STRIDE,
        "kv_head * HEADS + index % HEADS",
        "kv_head + index % HEADS * NUM_KV_HEADS",
    ),
    _any("parts overlap by a position", Kind.BY_ONE, "first + chunk.span);\n  for", "first + chunk.span + 1);\n  for"),
    _any(
        "parts leave a position out",
        Kind.BY_ONE,
        "first = at.z * chunk.span, last_row",
        "first = at.z * (chunk.span + 1), last_row",
    ),
    _any("the last row is not written", Kind.BY_ONE, "first_row + r <= last_row; ++r", "first_row + r < last_row; ++r"),
    _any(
        "rows past the last are read",
        Kind.GUARD,
        "const Row row = row_of(chunk, min(first_row + r, rows - 1), at.y);",
        "const Row row = row_of(chunk, first_row + r, at.y);",
    ),
    _any(
        "partial results overlap",
        Kind.STRIDE,
        "partials + (place * chunk.splits + at.z) * (HEAD_DIM + 2)",
        "partials + (place * chunk.splits + at.z) * (HEAD_DIM + 1)",
    ),
    _any(
        "the last part is not joined", Kind.BY_ONE, "split < chunk.splits; ++split", "split + 1 < chunk.splits; ++split"
    ),
    _any(
        "joined sums keep their size when a larger score comes",
        Kind.MISSING,
        "all.sum = fma(part[1], take, all.sum * keep)",
        "all.sum = fma(part[1], take, all.sum)",
    ),
    _any(
        "joined parts keep their size",
        Kind.MISSING,
        "fma(mixed[i], take, all.mixed[i] * keep)",
        "mixed[i] + all.mixed[i] * keep",
    ),
    _any(
        "the query for the gate", Kind.PLACE, "query_gate + (row * 2 + 1) * HEAD_DIM", "query_gate + row * 2 * HEAD_DIM"
    ),
    _any("joined heads past the last", Kind.GUARD, "  if (row >= chunk.tokens * NUM_HEADS) return;\n", ""),
    _delta(
        "shares are added up while they are written",
        Kind.BARRIER,
        "  threadgroup_barrier(mem_flags::mem_threadgroup);\n  float sum = 0.0f;\n  for (uint g",
        "  float sum = 0.0f;\n  for (uint g",
    ),
    _delta(
        "shares wait for their SIMD group only",
        Kind.BARRIER,
        "  threadgroup_barrier(mem_flags::mem_threadgroup);\n  float sum = 0.0f;\n  for (uint g",
        "  simdgroup_barrier(mem_flags::mem_threadgroup);\n  float sum = 0.0f;\n  for (uint g",
    ),
    _delta(
        "results are written where reads are still read",
        Kind.BARRIER,
        "sum_of_shares(own.dot(query), results,",
        "sum_of_shares(own.dot(query), reads,",
    ),
    _delta("every SIMD group writes the result", Kind.RACE, "if (exists && group == 0) out", "if (exists) out"),
    _delta("columns past the last are written", Kind.GUARD, "if (exists && group == 0) out", "if (group == 0) out"),
    _delta("columns past the last are read", Kind.GUARD, "cells[i] = exists && i < count ?", "cells[i] = i < count ?"),
    _delta(
        "columns past the last are stored",
        Kind.GUARD,
        "if (column < VALUE_HEAD_DIM && i < count) state",
        "if (i < count) state",
    ),
    _delta(
        "a SIMD group's rows begin past the last",
        Kind.GUARD,
        "first = min(group * CELLS, uint(KEY_HEAD_DIM));",
        "first = group * CELLS;",
    ),
    _delta(
        "a share has one row too few",
        Kind.BY_ONE,
        "CELLS = (KEY_HEAD_DIM + SHARES - 1) / SHARES",
        "CELLS = KEY_HEAD_DIM / SHARES",
    ),
    _delta(
        "the state has the stride of keys",
        Kind.STRIDE,
        "ulong(row) * VALUE_HEAD_DIM + column; }",
        "ulong(row) * KEY_HEAD_DIM + column; }",
    ),
    _delta("the first share is left out", Kind.BY_ONE, "uint g = 0; g < SHARES", "uint g = 1; g < SHARES"),
    _delta(
        "value heads take key heads in turn",
        Kind.STRIDE,
        "head / (NUM_VALUE_HEADS / NUM_KEY_HEADS)",
        "head % NUM_KEY_HEADS",
    ),
    _delta(
        "a head's key is the next head's query", Kind.PLACE, "key = query + KEY_WIDTH", "key = query + KEY_HEAD_DIM"
    ),
    _delta("what was read is not decayed", Kind.MISSING, "- keep * read)", "- read)"),
    _delta("the state is not decayed", Kind.MISSING, "change, cells[i] * keep)", "change, cells[i])"),
    _delta("the bias of the first head for all", Kind.PLACE, "decay_bias[head]", "decay_bias[0]"),
    _delta(
        "rates have the stride of key heads",
        Kind.STRIDE,
        "row = t * NUM_VALUE_HEADS + head",
        "row = t * NUM_KEY_HEADS + head",
    ),
    _delta("the state is not stored", Kind.MISSING, "  own.store(of_head, column);\n", ""),
    _delta(
        "the result is read before the state advances",
        Kind.ORDER,
        """    own.advance(key, keep, sigmoid(beta[row]) * ((exists ? value[column] : 0.0f) - keep * read));
    const float result = sum_of_shares(own.dot(query), results, group, lane);
""",
        """    const float result = sum_of_shares(own.dot(query), results, group, lane);
    own.advance(key, keep, sigmoid(beta[row]) * ((exists ? value[column] : 0.0f) - keep * read));
""",
    ),
    _delta(
        "the window keeps an input that has passed",
        Kind.BY_ONE,
        "conv_state[j * CHANNELS + channel] = window[j + 1]",
        "conv_state[j * CHANNELS + channel] = window[j]",
    ),
    _delta(
        "the window is not moved",
        Kind.MISSING,
        "    for (uint j = 0; j + 1 < CONV_KERNEL; ++j) window[j] = window[j + 1];\n",
        "",
    ),
    _delta(
        "the convolution's weights have the stride of keys",
        Kind.STRIDE,
        "weights[j] = conv[j * CHANNELS + channel]",
        "weights[j] = conv[j * KEY_WIDTH + channel]",
    ),
    _delta("channels past the last", Kind.GUARD, "  if (channel >= CHANNELS) return;\n", ""),
    _delta(
        "keys are scaled as queries",
        Kind.OPERATION,
        "head < NUM_KEY_HEADS ? 1.0f /",
        "head < 2 * NUM_KEY_HEADS ? 1.0f /",
    ),
    _delta("heads past the last are normed", Kind.GUARD, "  if (head >= 2 * NUM_KEY_HEADS) return;\n", ""),
]
