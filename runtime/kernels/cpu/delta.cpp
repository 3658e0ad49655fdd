// Gated DeltaNet (transformers' Qwen3_5MoeGatedDeltaNet), token by token in its recurrent form.
//
// qkv = silu(causal depthwise convolution); q = l2norm(q) / sqrt(key_dim), k = l2norm(k);
// S = exp(-exp(A_log) softplus(a + dt_bias)) S; S += k (outer) sigmoid(b) (v - k^T S); o = q^T S;
// out = rms_norm(o) * silu(z). Value head h reads key head h / (value_heads / key_heads).
#include "declarations.h"

#include <cmath>

namespace moepack::MOEPACK_ISA {

namespace {

constexpr int SPAN = 4;  // registers of sixteen value dimensions that share one pass over the state's rows

const float* input_row(const Delta& d, int64_t token) {
  const int64_t before = d.shape.conv_kernel - 1;
  return token < 0 ? d.conv_state + (before + token) * d.channels : d.mixed + token * d.channels;
}

// to = x / sqrt(sum x^2 + 1e-6) * scale
void l2_norm(const float* x, float scale, float* to, int64_t count) {
  const F16 factor = set(1.0f / __builtin_sqrtf(dot(x, x, count) + 1e-6f) * scale);
  for (int64_t i = 0; i < count; i += LANES) store_up_to(to + i, mul(load_up_to(x + i, count - i), factor), count - i);
}

struct Step {
  const float *query, *key, *value;
  float beta, decay;
  int64_t key_dim, value_dim;
};

// Columns `at`.. of one head's state: decay, correct, and read out; N registers, the last `count - 16 (N - 1)` wide.
template <int N> void advance(const Step& s, float* state, float* out, int64_t count) {
  F16 read[N], change[N], sums[N];
  for (int n = 0; n < N; ++n) read[n] = sums[n] = set(0.0f);
  for (int64_t i = 0; i < s.key_dim; ++i) {
    const F16 key = set(s.key[i]), decay = set(s.decay);
    for (int n = 0; n < N; ++n) {
      float* const at = state + i * s.value_dim + n * LANES;
      const F16 kept = mul(load_up_to(at, count - n * LANES), decay);
      store_up_to(at, kept, count - n * LANES);
      read[n] = fma(kept, key, read[n]);
    }
  }
  for (int n = 0; n < N; ++n)
    change[n] = mul(sub(load_up_to(s.value + n * LANES, count - n * LANES), read[n]), set(s.beta));
  for (int64_t i = 0; i < s.key_dim; ++i) {
    const F16 key = set(s.key[i]), query = set(s.query[i]);
    for (int n = 0; n < N; ++n) {
      float* const at = state + i * s.value_dim + n * LANES;
      const F16 next = fma(key, change[n], load_up_to(at, count - n * LANES));
      store_up_to(at, next, count - n * LANES);
      sums[n] = fma(next, query, sums[n]);
    }
  }
  for (int n = 0; n < N; ++n) store_up_to(out + n * LANES, sums[n], count - n * LANES);
}

void advance_head(Step step, float* state, float* out) {
  const float* const value = step.value;
  int64_t at = 0;
  for (; at + SPAN * LANES <= step.value_dim; at += SPAN * LANES) {
    step.value = value + at;
    advance<SPAN>(step, state + at, out + at, SPAN * LANES);
  }
  for (; at < step.value_dim; at += LANES) {
    step.value = value + at;
    advance<1>(step, state + at, out + at, step.value_dim - at);
  }
}

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

void gate(float* x, const float* z, int64_t count) {
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t left = count - i;
    store_up_to(x + i, mul(load_up_to(x + i, left), silu(load_up_to(z + i, left))), left);
  }
}

}  // namespace

void delta_conv(const Delta& d, int64_t first, int64_t last) {
  const int64_t kernel = d.shape.conv_kernel;
  for (int64_t token = 0; token < d.tokens; ++token)
    for (int64_t c = first; c < last; c += LANES) {
      const int64_t left = last - c;
      F16 sum = set(0.0f);
      for (int64_t j = 0; j < kernel; ++j)
        sum = fma(load_up_to(input_row(d, token - (kernel - 1) + j) + c, left),
                  load_up_to(d.conv + j * d.channels + c, left), sum);
      store_up_to(d.convolved + token * d.channels + c, silu(sum), left);
    }
  for (int64_t j = 0; j < kernel - 1; ++j)  // ascending: row j is read from row j + tokens or later
    std::memmove(d.conv_state + j * d.channels + first, input_row(d, d.tokens - (kernel - 1) + j) + first,
                 static_cast<size_t>(last - first) * sizeof(float));
}

void delta_head(const Delta& d, int64_t head, float* scratch) {
  const DeltaShape& s = d.shape;
  const int64_t keys = s.key_head_dim, values = s.value_head_dim,
                key_head = head / (s.num_value_heads / s.num_key_heads);
  float *query = scratch, *key = scratch + keys, *state = d.state + head * keys * values;
  for (int64_t token = 0; token < d.tokens; ++token) {
    const float* const row = d.convolved + token * d.channels;
    const int64_t at = token * s.num_value_heads + head;
    l2_norm(row + key_head * keys, 1.0f / __builtin_sqrtf(static_cast<float>(keys)), query, keys);
    l2_norm(row + (s.num_key_heads + key_head) * keys, 1.0f, key, keys);
    const float beta = 1.0f / (1.0f + std::exp(-d.beta[at]));
    const float decay = std::exp(-std::exp(d.log_decay[head]) * softplus(d.decay[at] + d.decay_bias[head]));
    float* const out = d.out + at * values;
    advance_head({query, key, row + 2 * s.num_key_heads * keys + head * values, beta, decay, keys, values}, state, out);
    rms_norm(out, d.norm, s.eps, out, values);
    gate(out, d.gate + at * values, values);
  }
}

}  // namespace moepack::MOEPACK_ISA
