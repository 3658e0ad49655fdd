// Gated softmax attention with partial rotary embedding (transformers' Qwen3_5MoeAttention), for one token or a chunk.
//
// Of a head: q = rope(rms_norm(q)), k = rope(rms_norm(k)); out = softmax(q k^T / sqrt(d)) v * sigmoid(gate). The query
// projection holds each head as [query | gate]. Rotation pairs dimension i with i + ROTARY_DIMS / 2 (half-split).
// Token t of a chunk sits at position + t; the caches are [capacity, NUM_KV_HEADS * HEAD_DIM].
//
// Three launches: `attention_prepare` norms, rotates and writes the caches; `attention` goes through the positions, in
// `splits` parts of `span` positions that do not wait for each other; `attention_join` adds the parts up in ascending
// order and gates. One token with a long context wants many parts, a chunk has enough rows with one.
//
// Macros: NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, ROTARY_DIMS. No threadgroup memory: a SIMD group works alone.

#include "numbers.h"

constant constexpr uint HEADS = NUM_HEADS / NUM_KV_HEADS;           // that read one key head
constant constexpr uint HALF = ROTARY_DIMS / 2;
constant constexpr uint OWN = (HEAD_DIM + LANES - 1) / LANES;       // dimensions of a lane: lane, lane + LANES, ...
constant constexpr uint QUERIES = 4;                                // rows of a SIMD group, which share each key
constant constexpr uint KEYS = 4;                                   // positions at a time
constant constexpr float HIDDEN = -3.0e38f;                         // below every score, and finite less any of them

// Host: struct "<4If". splits * span >= position + tokens.
struct Chunk {
  uint position, tokens, span, splits;
  float eps;
};

// A head, normed and rotated.
struct Head {
  device const float* x;
  device const float* weight;
  constant float *cos, *sin;
  float scale;

  float normed(uint d) const { return x[d] * scale * weight[d]; }

  float operator[](uint d) const {
    if (d < HALF) return normed(d) * cos[d] - normed(d + HALF) * sin[d];
    if (d < 2 * HALF) return normed(d) * cos[d - HALF] + normed(d - HALF) * sin[d - HALF];
    return normed(d);
  }
};

inline float norm_scale(device const float* x, float eps, uint lane) {
  return 1.0f / precise::sqrt(sum_of_squares(x, HEAD_DIM, lane) / float(HEAD_DIM) + eps);
}

// queries = rope(rms_norm(q)) / sqrt(HEAD_DIM); the caches' new rows = rope(rms_norm(k)) and v.
// query_gate [tokens, NUM_HEADS, 2, HEAD_DIM]; key, value [tokens, NUM_KV_HEADS, HEAD_DIM]; norms [HEAD_DIM]; cos, sin
// [tokens, ROTARY_DIMS / 2] of the tokens' positions; queries [tokens, NUM_HEADS, HEAD_DIM].
// Grid: ceil(tokens * (NUM_HEADS + NUM_KV_HEADS) / SIMD_GROUPS) threadgroups of THREADS: a head for each SIMD group.
kernel void attention_prepare(device const float* query_gate [[buffer(0)]],
                              device const float* key [[buffer(1)]],
                              device const float* value [[buffer(2)]],
                              device const float* query_norm [[buffer(3)]],
                              device const float* key_norm [[buffer(4)]],
                              constant float* cos [[buffer(5)]],
                              constant float* sin [[buffer(6)]],
                              device float* queries [[buffer(7)]],
                              device float* keys [[buffer(8)]],
                              device float* values [[buffer(9)]],
                              constant Chunk& chunk [[buffer(10)]],
                              uint at [[threadgroup_position_in_grid]],
                              uint lane [[thread_index_in_simdgroup]],
                              uint group [[simdgroup_index_in_threadgroup]]) {
  const uint index = at * SIMD_GROUPS + group, token = index / (NUM_HEADS + NUM_KV_HEADS);
  const uint head = index % (NUM_HEADS + NUM_KV_HEADS);
  if (token >= chunk.tokens) return;
  constant float *const cosines = cos + token * HALF, *const sines = sin + token * HALF;
  if (head < NUM_HEADS) {
    const ulong row = ulong(token) * NUM_HEADS + head;
    device const float* const x = query_gate + row * 2 * HEAD_DIM;
    const Head query = {x, query_norm, cosines, sines, norm_scale(x, chunk.eps, lane)};
    const float share = 1.0f / precise::sqrt(float(HEAD_DIM));
    for (uint d = lane; d < HEAD_DIM; d += LANES) queries[row * HEAD_DIM + d] = query[d] * share;
  } else {
    const ulong from = (ulong(token) * NUM_KV_HEADS + head - NUM_HEADS) * HEAD_DIM;
    const ulong to = from + ulong(chunk.position) * NUM_KV_HEADS * HEAD_DIM;
    device const float* const x = key + from;
    const Head rotated = {x, key_norm, cosines, sines, norm_scale(x, chunk.eps, lane)};
    for (uint d = lane; d < HEAD_DIM; d += LANES) {
      keys[to + d] = rotated[d];
      values[to + d] = value[from + d];
    }
  }
}

// A partial result: the largest score, the sum of exponentials, and the values weighted by them.
struct Partial {
  float most, sum, mixed[OWN];
};

inline void take_dims(device const float* from, uint lane, thread float* to) {
  for (uint i = 0; i < OWN; ++i) to[i] = i * LANES + lane < HEAD_DIM ? from[i * LANES + lane] : 0.0f;
}

inline float score(thread const float* a, thread const float* b) {
  float sum = 0.0f;
  for (uint i = 0; i < OWN; ++i) sum = fma(a[i], b[i], sum);
  return simd_sum(sum);
}

// KEYS positions of a key head, one after the other; where there are fewer, the last is repeated.
struct Positions {
  float keys[KEYS][OWN], values[KEYS][OWN];

  Positions(device const float* from_keys, device const float* from_values, uint first, uint last, uint head, uint lane) {
    for (uint n = 0; n < KEYS; ++n) {
      const ulong start = (ulong(min(first + n, last)) * NUM_KV_HEADS + head) * HEAD_DIM;
      take_dims(from_keys + start, lane, keys[n]);
      take_dims(from_values + start, lane, values[n]);
    }
  }
};

// Takes in positions, of which a row sees the first `seen`: the largest score first, then what it makes of the rest.
inline void take_in(thread Partial& p, thread const float* query, thread const Positions& positions, uint seen) {
  float scores[KEYS], most = p.most;
  for (uint n = 0; n < KEYS; ++n) {
    scores[n] = score(query, positions.keys[n]);
    if (n < seen) most = max(most, scores[n]);
  }
  const float keep = precise::exp(p.most - most);
  p.most = most;
  p.sum *= keep;
  for (uint i = 0; i < OWN; ++i) p.mixed[i] *= keep;
  for (uint n = 0; n < KEYS; ++n) {
    const float share = n < seen ? precise::exp(scores[n] - most) : 0.0f;
    p.sum += share;
    for (uint i = 0; i < OWN; ++i) p.mixed[i] = fma(share, positions.values[n][i], p.mixed[i]);
  }
}

// A query row: where it lies in arrays of heads, and one past the last position that it sees.
struct Row {
  ulong place;
  uint end;
};

// Row `index` of a key head: its rows go token by token, and in each token head by head.
inline Row row_of(constant Chunk& chunk, uint index, uint kv_head) {
  const uint token = index / HEADS;
  return {ulong(token) * NUM_HEADS + kv_head * HEADS + index % HEADS, chunk.position + token + 1};
}

inline void write_partial(thread const Partial& p, device float* to, uint lane) {
  if (lane == 0) {
    to[0] = p.most;
    to[1] = p.sum;
  }
  for (uint i = 0; i < OWN; ++i)
    if (i * LANES + lane < HEAD_DIM) to[2 + i * LANES + lane] = p.mixed[i];
}

// Partial results of all query rows over each part of the positions they see.
// queries [tokens, NUM_HEADS, HEAD_DIM]; partials [tokens, NUM_HEADS, splits, HEAD_DIM + 2].
// Grid: (ceil(tokens * HEADS / (QUERIES * SIMD_GROUPS)), NUM_KV_HEADS, splits) threadgroups of THREADS: QUERIES rows of
// a key head for each SIMD group; rows past the last repeat it, and are not written.
kernel void attention(device const float* queries [[buffer(0)]],
                      device const float* keys [[buffer(1)]],
                      device const float* values [[buffer(2)]],
                      device float* partials [[buffer(3)]],
                      constant Chunk& chunk [[buffer(4)]],
                      uint3 at [[threadgroup_position_in_grid]],
                      uint lane [[thread_index_in_simdgroup]],
                      uint group [[simdgroup_index_in_threadgroup]]) {
  const uint rows = chunk.tokens * HEADS, first_row = (at.x * SIMD_GROUPS + group) * QUERIES;
  if (first_row >= rows) return;
  float query[QUERIES][OWN];
  Partial partial[QUERIES];
  for (uint r = 0; r < QUERIES; ++r) {
    const Row row = row_of(chunk, min(first_row + r, rows - 1), at.y);
    take_dims(queries + row.place * HEAD_DIM, lane, query[r]);
    partial[r] = {HIDDEN, 0.0f, {}};
  }
  const uint first = at.z * chunk.span, last_row = min(first_row + QUERIES, rows) - 1;
  const uint end = min(row_of(chunk, last_row, at.y).end, first + chunk.span);
  for (uint p = first; p < end; p += KEYS) {
    const Positions positions(keys, values, p, end - 1, at.y, lane);
    for (uint r = 0; r < QUERIES; ++r) {
      const uint row_end = min(row_of(chunk, min(first_row + r, rows - 1), at.y).end, end);
      take_in(partial[r], query[r], positions, row_end > p ? row_end - p : 0);
    }
  }
  for (uint r = 0; first_row + r <= last_row; ++r) {
    const ulong place = row_of(chunk, first_row + r, at.y).place;
    write_partial(partial[r], partials + (place * chunk.splits + at.z) * (HEAD_DIM + 2), lane);
  }
}

// out = the joined partial results, divided by their sums, times sigmoid(gate). out [tokens, NUM_HEADS, HEAD_DIM].
// Grid: ceil(tokens * NUM_HEADS / SIMD_GROUPS) threadgroups of THREADS: a head for each SIMD group.
kernel void attention_join(device const float* partials [[buffer(0)]],
                           device const float* query_gate [[buffer(1)]],
                           device float* out [[buffer(2)]],
                           constant Chunk& chunk [[buffer(3)]],
                           uint at [[threadgroup_position_in_grid]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint group [[simdgroup_index_in_threadgroup]]) {
  const ulong row = at * SIMD_GROUPS + group;
  if (row >= chunk.tokens * NUM_HEADS) return;
  Partial all = {HIDDEN, 0.0f, {}};
  for (uint split = 0; split < chunk.splits; ++split) {
    device const float* const part = partials + (row * chunk.splits + split) * (HEAD_DIM + 2);
    float mixed[OWN];
    take_dims(part + 2, lane, mixed);
    const float most = max(all.most, part[0]), keep = precise::exp(all.most - most), take = precise::exp(part[0] - most);
    all.most = most;
    all.sum = fma(part[1], take, all.sum * keep);
    for (uint i = 0; i < OWN; ++i) all.mixed[i] = fma(mixed[i], take, all.mixed[i] * keep);
  }
  device const float* const gate = query_gate + (row * 2 + 1) * HEAD_DIM;
  for (uint i = 0; i < OWN; ++i) {
    const uint d = i * LANES + lane;
    if (d < HEAD_DIM) out[row * HEAD_DIM + d] = all.mixed[i] / all.sum * sigmoid(gate[d]);
  }
}
