// Gated softmax attention with partial rotary embedding (transformers' Qwen3_5MoeAttention).
//
// Of a head: q = rope(rms_norm(q)), k = rope(rms_norm(k)); out = softmax(q k^T / sqrt(d)) v * sigmoid(gate). The query
// projection holds each head as [query | gate]. Rotation pairs dimension i with i + rotary_dims / 2 (half-split).
//
// The lanes are query rows: all heads that read one key head, for as many tokens as fill sixteen. Each number of the
// cache is then read once for the whole tile and multiplies a register, and scores, maxima, sums and outputs never
// cross lanes. A row's result has one order of operations: within a block of positions, dot products over ascending
// dimensions, exponentials against the block's largest score, sums over ascending positions; then the blocks' partial
// results, joined in ascending order. Blocks lie at multiples of ATTENTION_BLOCK, so that nothing else changes a bit.
#include "declarations.h"

namespace moepack::MOEPACK_ISA {

namespace {

#if defined(__AVX512F__)  // as many sums as hide a multiply-add's latency; those over values share a cache line
constexpr int KEYS = 8, DIMS = 16;
#else
constexpr int KEYS = 4, DIMS = 4;
#endif
constexpr int64_t AHEAD = 2 * KEYS;  // positions between a key and the one that is asked of the caches
constexpr int LAST = LANES - 1;      // of sixteen floats that may lie on two cache lines: asking for it brings the second
constexpr float HIDDEN = -3.0e38f;  // below every score, and still finite less any of them

// Asks for a cache line, not as far as the first level, where rows of a cache, all alike placed, displace each other.
__attribute__((always_inline)) inline void ask(const float* line) { __builtin_prefetch(line, 0, 2); }

// Where a tile's rows and positions lie.
struct Tile {
  int64_t kv, first_row, rows, group, end;  // `end`: one past the last position that the last row sees
  int64_t token(int64_t lane) const { return (first_row + lane) / group; }
  int64_t head(int64_t lane) const { return kv * group + (first_row + lane) % group; }
};

Tile tile_of(const Attention& a, int64_t tile) {
  const int64_t group = a.shape.num_heads / a.shape.num_kv_heads, rows = a.tokens * group;
  const int64_t first = tile % a.tiles * ATTENTION_ROWS;
  const int64_t count = rows - first < ATTENTION_ROWS ? rows - first : ATTENTION_ROWS;
  return {tile / a.tiles, first, count, group, a.position + (first + count - 1) / group + 1};
}

void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = b * cos[i] + a * sin[i];
  }
}

// scores[n] = queries . keys of position n, for KEYS positions; asks the caches for what lies `ahead` of each.
void score(const float* queries, const float* const* keys, int64_t ahead, int64_t dim, float* scores) {
  F16 sums[KEYS];
  for (int n = 0; n < KEYS; ++n) sums[n] = set(0.0f);
  const auto products = [&](int64_t d) __attribute__((always_inline)) {
    const F16 query = load(queries + d * LANES);
    for (int n = 0; n < KEYS; ++n) sums[n] = fma(query, set(keys[n][d]), sums[n]);
  };
  int64_t d = 0;
  for (; d + LANES <= dim; d += LANES) {
    for (int n = 0; n < KEYS; ++n) ask(keys[n] + ahead + d + LAST);
    for (int i = 0; i < LANES; ++i) products(d + i);
  }
  for (; d < dim; ++d) products(d);
  for (int n = 0; n < KEYS; ++n) store(scores + n * LANES, sums[n]);
}

// Scores of `count` positions, each [16 rows]; writes up to KEYS - 1 more, which mean nothing. Asks for the first of the
// positions' values on the way.
void score_all(const float* queries, const float* keys, const float* values, int64_t stride, int64_t dim, int64_t count,
               float* scores) {
  for (int64_t j = 0; j < count; j += KEYS) {
    const float* rows[KEYS];
    for (int64_t n = 0; n < KEYS; ++n) {
      const int64_t at = (j + n < count ? j + n : count - 1) * stride;
      rows[n] = keys + at;
      ask(keys + at + AHEAD * stride);
      ask(values + at);
      ask(values + at + LAST);
    }
    score(queries, rows, AHEAD * stride, dim, scores + j * LANES);
  }
}

// Gives `value` to each score of a position that lies after its row's own token.
void hide(const Attention& a, const Tile& t, int64_t first, int64_t count, float value, float* scores) {
  const int64_t seen_by_all = a.position + t.token(0) + 1 - first;
  for (int64_t j = seen_by_all > 0 ? seen_by_all : 0; j < count; ++j)
    for (int64_t lane = 0; lane < t.rows; ++lane)
      if (first + j > a.position + t.token(lane)) scores[j * LANES + lane] = value;
}

F16 largest(const float* scores, int64_t count) {
  F16 most = load(scores);
  for (int64_t j = 1; j < count; ++j) most = max(most, load(scores + j * LANES));
  return most;
}

void exponentials(float* scores, int64_t count, F16 most) {
  for (int64_t j = 0; j < count; ++j) store(scores + j * LANES, exp(sub(load(scores + j * LANES), most)));
}

F16 total(const float* scores, int64_t count) {
  F16 sum = set(0.0f);
  for (int64_t j = 0; j < count; ++j) sum = add(sum, load(scores + j * LANES));
  return sum;
}

// to[n] = shares . dimension n of the values of `count` positions, for N dimensions; asks for the next ones on the way.
template <int N> void mix(const float* shares, const float* values, int64_t stride, int64_t count, float* to) {
  F16 sums[N];
  for (int n = 0; n < N; ++n) sums[n] = set(0.0f);
  for (int64_t j = 0; j < count; ++j) {
    const float* const row = values + j * stride;
    ask(row + LANES + LAST);
    const F16 share = load(shares + j * LANES);
    for (int n = 0; n < N; ++n) sums[n] = fma(share, set(row[n]), sums[n]);
  }
  for (int n = 0; n < N; ++n) store(to + n * LANES, sums[n]);
}

void mix_all(const float* shares, const float* values, int64_t stride, int64_t dim, int64_t count, float* to) {
  int64_t d = 0;
  for (; d + DIMS <= dim; d += DIMS) mix<DIMS>(shares, values + d, stride, count, to + d * LANES);
  for (; d < dim; ++d) mix<1>(shares, values + d, stride, count, to + d * LANES);
}

}  // namespace

void attention_cache(const Attention& a, int64_t token) {
  const AttentionShape& s = a.shape;
  const int64_t dim = s.head_dim, half = s.rotary_dims / 2, width = s.num_kv_heads * dim;
  for (int64_t h = 0; h < s.num_kv_heads; ++h) {
    float* const key = a.keys + (a.position + token) * width + h * dim;
    rms_norm(a.key + token * width + h * dim, a.key_norm, s.eps, key, dim);
    rotate(key, a.cos + token * half, a.sin + token * half, half);
  }
  std::memcpy(a.values + (a.position + token) * width, a.value + token * width,
              static_cast<size_t>(width) * sizeof(float));
}

void attention_start(const Attention& a, int64_t tile, float* queries, float* sum) {
  const AttentionShape& s = a.shape;
  const Tile t = tile_of(a, tile);
  const int64_t dim = s.head_dim, half = s.rotary_dims / 2;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim));
  std::memset(queries, 0, static_cast<size_t>(dim * LANES) * sizeof(float));
  std::memset(sum, 0, static_cast<size_t>((dim + 2) * LANES) * sizeof(float));
  store(sum, set(HIDDEN));
  for (int64_t lane = 0; lane < t.rows; ++lane) {
    const int64_t token = t.token(lane), at = token * s.num_heads + t.head(lane);
    float* const row = a.out + at * dim;  // room for the row, until its result comes
    rms_norm(a.query_gate + at * 2 * dim, a.query_norm, s.eps, row, dim);
    rotate(row, a.cos + token * half, a.sin + token * half, half);
    for (int64_t d = 0; d < dim; ++d) queries[d * LANES + lane] = row[d] * scale;
  }
}

void attention_block(const Attention& a, int64_t tile, int64_t block, const float* queries, float* scores,
                     float* partial) {
  const Tile t = tile_of(a, tile);
  const int64_t dim = a.shape.head_dim, stride = a.shape.num_kv_heads * dim, first = block * ATTENTION_BLOCK;
  const int64_t left = t.end - first, count = left < ATTENTION_BLOCK ? left : ATTENTION_BLOCK;
  const int64_t at = first * stride + t.kv * dim;
  score_all(queries, a.keys + at, a.values + at, stride, dim, count, scores);
  hide(a, t, first, count, HIDDEN, scores);
  const F16 most = largest(scores, count);
  exponentials(scores, count, most);
  hide(a, t, first, count, 0.0f, scores);
  store(partial, most);
  store(partial + LANES, total(scores, count));
  mix_all(scores, a.values + at, stride, dim, count, partial + 2 * LANES);
}

void attention_join(const Attention& a, const float* partial, float* sum) {
  const F16 old = load(sum), added = load(partial), most = max(old, added);
  const F16 keep = exp(sub(old, most)), take = exp(sub(added, most));
  store(sum, most);
  for (int64_t i = 1; i < a.shape.head_dim + 2; ++i)
    store(sum + i * LANES, fma(load(partial + i * LANES), take, mul(load(sum + i * LANES), keep)));
}

void attention_finish(const Attention& a, int64_t tile, const float* sum) {
  const Tile t = tile_of(a, tile);
  const int64_t dim = a.shape.head_dim;
  const float* const mixed = sum + 2 * LANES;
  for (int64_t lane = 0; lane < t.rows; ++lane) {
    const int64_t at = t.token(lane) * a.shape.num_heads + t.head(lane);
    const float* const gate = a.query_gate + at * 2 * dim + dim;
    float* const out = a.out + at * dim;
    const float share = 1.0f / sum[LANES + lane];
    for (int64_t d = 0; d < dim; ++d) out[d] = mixed[d * LANES + lane] * share;
    for (int64_t d = 0; d < dim; d += LANES) {
      const int64_t left = dim - d;
      store_up_to(out + d, mul(load_up_to(out + d, left), sigmoid(load_up_to(gate + d, left))), left);
    }
  }
}

}  // namespace moepack::MOEPACK_ISA
