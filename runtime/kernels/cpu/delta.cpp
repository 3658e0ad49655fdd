// Gated DeltaNet (transformers' Qwen3_5MoeGatedDeltaNet) in its recurrent form, one pass over the state per token.
//
// qkv = silu(causal depthwise convolution); q = l2norm(q) / sqrt(key_dim), k = l2norm(k); with S the state,
// g = exp(-exp(A_log) softplus(a + dt_bias)) and c = sigmoid(b) (v - g k^T S): S = g S + k (outer) c; o = q^T S;
// out = rms_norm(o) * silu(z). Value head h reads key head h / (value_heads / key_heads).
//
// A token's result needs the whole of the state before it, so tokens cannot share a pass as they are; but the pass that
// corrects the state for one token reads it out for the next. A few columns of one head's state stay in the first-level
// cache for a whole chunk: columns never meet. The published chunked form (triangular solve over C tokens) turns this
// into matrix products with 3 K V + C (K + V) multiply-adds a token where this has 4 K V: no fewer at K = V = 128 and
// C = 64, and its sums would depend on where chunks begin, which must not change a bit.
#include "declarations.h"

namespace moepack::MOEPACK_ISA {

namespace {

constexpr int LAST = LANES - 1;  // of sixteen floats that may lie on two cache lines: asking for it brings the second
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers; elsewhere 16
constexpr int SPAN = 2;
#else
constexpr int SPAN = 1;
#endif

const float* input_row(const Delta& d, int64_t token) {
  const int64_t before = d.shape.conv_kernel - 1;
  return token < 0 ? d.conv_state + (before + token) * d.channels : d.mixed + token * d.channels;
}

// x = x / sqrt(sum x^2 + 1e-6) * scale
void l2_norm(float* x, float scale, int64_t count) {
  const F16 factor = set(1.0f / __builtin_sqrtf(dot(x, x, count) + 1e-6f) * scale);
  for (int64_t i = 0; i < count; i += LANES) store_up_to(x + i, mul(load_up_to(x + i, count - i), factor), count - i);
}

void convolve(const Delta& d, int64_t token, int64_t first, int64_t last) {
  const int64_t kernel = d.shape.conv_kernel;
  for (int64_t c = first; c < last; c += LANES) {
    const int64_t left = last - c;
    F16 sum = set(0.0f);
    for (int64_t j = 0; j < kernel; ++j)
      sum = fma(load_up_to(input_row(d, token - (kernel - 1) + j) + c, left),
                load_up_to(d.conv + j * d.channels + c, left), sum);
    store_up_to(d.convolved + token * d.channels + c, silu(sum), left);
  }
}

float softplus(float x) { return x > 20.0f ? x : __builtin_log1pf(__builtin_expf(x)); }

void weigh(const Delta& d, int64_t token, int64_t head) {
  const int64_t at = token * d.shape.num_value_heads + head;
  const float step = softplus(d.decay[at] + d.decay_bias[head]);
  d.keeps[at] = __builtin_expf(-__builtin_expf(d.log_decay[head]) * step);
  d.learns[at] = 1.0f / (1.0f + __builtin_expf(-d.beta[at]));
}

// Columns of one head's state, [key_dim][SPAN registers], and what each token's pass needs of them.
struct Slice {
  const Delta& d;
  int64_t head, key_head, column, count;  // `count` columns, up to SPAN * LANES
  float* cells;

  const float* query(int64_t token) const { return d.convolved + token * d.channels + key_head * d.shape.key_head_dim; }
  const float* key(int64_t token) const { return query(token) + d.shape.num_key_heads * d.shape.key_head_dim; }
  const float* value(int64_t token) const {
    return d.convolved + token * d.channels + 2 * d.shape.num_key_heads * d.shape.key_head_dim +
           head * d.shape.value_head_dim + column;
  }
  float* out(int64_t token) const {
    return d.out + (token * d.shape.num_value_heads + head) * d.shape.value_head_dim + column;
  }
  float* state(int64_t row) const {
    return d.state + (head * d.shape.key_head_dim + row) * d.shape.value_head_dim + column;
  }
};

inline int64_t left_of(const Slice& s, int n) {
  const int64_t left = s.count - n * LANES;
  return left < 0 ? 0 : left;
}

// Copies the columns in; read = key of the first token . columns. Asks for what lies `ahead` of them on the way.
void enter(const Slice& s, int64_t ahead, F16 (&read)[SPAN]) {
  const float* const key = s.key(0);
  for (int n = 0; n < SPAN; ++n) read[n] = set(0.0f);
  for (int64_t i = 0; i < s.d.shape.key_head_dim; ++i)
    for (int n = 0; n < SPAN; ++n) {
      const F16 cells = load_up_to(s.state(i) + n * LANES, left_of(s, n));
      __builtin_prefetch(s.state(i) + ahead + n * LANES + LAST, 0, 2);  // as far as the second level
      store(s.cells + (i * SPAN + n) * LANES, cells);
      read[n] = fma(set(key[i]), cells, read[n]);
    }
}

// What token's value changes, given what its key read: (value - keep * read) * learn.
void change(const Slice& s, int64_t token, const F16 (&read)[SPAN], F16 (&to)[SPAN]) {
  const int64_t at = token * s.d.shape.num_value_heads + s.head;
  const F16 keep = set(s.d.keeps[at]), learn = set(s.d.learns[at]);
  for (int n = 0; n < SPAN; ++n)
    to[n] = mul(sub(load_up_to(s.value(token) + n * LANES, left_of(s, n)), mul(keep, read[n])), learn);
}

// One token's pass: cells = keep * cells + key * change; out = query . cells; and read = key . cells of the next token,
// or, if there is none, cells go back to the state.
template <bool NEXT> void advance(const Slice& s, int64_t token, F16 (&read)[SPAN]) {
  const float *const key = s.key(token), *const query = s.query(token), *const next = NEXT ? s.key(token + 1) : nullptr;
  const F16 keep = set(s.d.keeps[token * s.d.shape.num_value_heads + s.head]);
  F16 changes[SPAN], outs[SPAN], reads[SPAN];
  change(s, token, read, changes);
  for (int n = 0; n < SPAN; ++n) outs[n] = reads[n] = set(0.0f);
  float* cells = s.cells;
  for (int64_t i = 0; i < s.d.shape.key_head_dim; ++i)
    for (int n = 0; n < SPAN; ++n, cells += LANES) {
      const F16 cell = fma(set(key[i]), changes[n], mul(load(cells), keep));
      outs[n] = fma(set(query[i]), cell, outs[n]);
      if constexpr (NEXT) {
        store(cells, cell);
        reads[n] = fma(set(next[i]), cell, reads[n]);
      } else {
        store_up_to(s.state(i) + n * LANES, cell, left_of(s, n));
      }
    }
  for (int n = 0; n < SPAN; ++n) {
    store_up_to(s.out(token) + n * LANES, outs[n], left_of(s, n));
    read[n] = reads[n];
  }
}

}  // namespace

void delta_inputs(const Delta& d, int64_t first, int64_t last) {
  const DeltaShape& s = d.shape;
  const int64_t keys = s.key_head_dim, values = s.value_head_dim, of_keys = 2 * s.num_key_heads;
  for (int64_t h = first; h < last; ++h) {
    const int64_t from = h < of_keys ? h * keys : of_keys * keys + (h - of_keys) * values;
    const float scale = h < s.num_key_heads ? 1.0f / __builtin_sqrtf(static_cast<float>(keys)) : 1.0f;
    for (int64_t token = 0; token < d.tokens; ++token) {
      convolve(d, token, from, from + (h < of_keys ? keys : values));
      if (h < of_keys) l2_norm(d.convolved + token * d.channels + from, scale, keys);
      else weigh(d, token, h - of_keys);
    }
  }
}

void delta_shift(const Delta& d) {
  const int64_t before = d.shape.conv_kernel - 1;
  for (int64_t j = 0; j < before; ++j)  // ascending: row j is read from row j + tokens or later
    std::memmove(d.conv_state + j * d.channels, input_row(d, d.tokens - before + j),
                 static_cast<size_t>(d.channels) * sizeof(float));
}

void delta_slice(const Delta& d, int64_t head, int64_t slice, float* scratch) {
  const int64_t column = slice * DELTA_COLUMNS, left = d.shape.value_head_dim - column;
  for (int64_t c = 0; c < DELTA_COLUMNS && c < left; c += SPAN * LANES) {
    const int64_t count = left - c < SPAN * LANES ? left - c : SPAN * LANES;
    const Slice s = {d, head, head / (d.shape.num_value_heads / d.shape.num_key_heads), column + c, count, scratch};
    const int64_t ahead = count < left - c ? count : d.shape.key_head_dim * d.shape.value_head_dim - column - c;
    F16 read[SPAN];
    enter(s, ahead, read);
    for (int64_t token = 0; token + 1 < d.tokens; ++token) advance<true>(s, token, read);
    advance<false>(s, d.tokens - 1, read);
  }
}

void delta_outputs(const Delta& d, int64_t row) {
  const int64_t count = d.shape.value_head_dim;
  float* const out = d.out + row * count;
  const float* const gate = d.gate + row * count;
  rms_norm(out, d.norm, d.shape.eps, out, count);
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t left = count - i;
    store_up_to(out + i, mul(load_up_to(out + i, left), silu(load_up_to(gate + i, left))), left);
  }
}

}  // namespace moepack::MOEPACK_ISA
