// Gated softmax attention with partial rotary embedding (transformers' Qwen3_5MoeAttention).
//
// Of a head: q = rope(rms_norm(q)), k = rope(rms_norm(k)); out = softmax(q k^T / sqrt(d)) v * sigmoid(gate). The query
// projection holds each head as [query | gate]. Rotation pairs dimension i with i + rotary_dims / 2 (half-split).
#include "declarations.h"

namespace moepack::MOEPACK_ISA {

namespace {

constexpr int64_t SPAN = 4;  // registers of sixteen output dimensions that share one pass over the values

void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = b * cos[i] + a * sin[i];
  }
}

// out[d] = sum over positions, ascending, of p[j] * values[j, d], for `count` <= 64 dimensions.
template <int N>
void mix(const float* p, int64_t positions, const float* values, int64_t stride, F16 scale, const float* gate,
         float* out, int64_t count) {
  F16 sums[N];
  for (int n = 0; n < N; ++n) sums[n] = set(0.0f);
  for (int64_t j = 0; j < positions; ++j)
    for (int n = 0; n < N; ++n)
      sums[n] = fma(set(p[j]), load_up_to(values + j * stride + n * LANES, count - n * LANES), sums[n]);
  for (int n = 0; n < N; ++n) {
    const int64_t at = n * LANES, left = count - at;
    store_up_to(out + at, mul(mul(sums[n], scale), sigmoid(load_up_to(gate + at, left))), left);
  }
}

}  // namespace

void attention_prepare(const Attention& a, int64_t token) {
  const AttentionShape& s = a.shape;
  const int64_t dim = s.head_dim, half = s.rotary_dims / 2, width = s.num_kv_heads * dim;
  const float *cos = a.cos + token * half, *sin = a.sin + token * half;
  for (int64_t h = 0; h < s.num_heads; ++h) {
    float* const query = a.queries + (token * s.num_heads + h) * dim;
    rms_norm(a.query_gate + (token * s.num_heads + h) * 2 * dim, a.query_norm, s.eps, query, dim);
    rotate(query, cos, sin, half);
  }
  for (int64_t h = 0; h < s.num_kv_heads; ++h) {
    float* const key = a.keys + (a.position + token) * width + h * dim;
    rms_norm(a.key + token * width + h * dim, a.key_norm, s.eps, key, dim);
    rotate(key, cos, sin, half);
  }
  std::memcpy(a.values + (a.position + token) * width, a.value + token * width,
              static_cast<size_t>(width) * sizeof(float));
}

void attention_head(const Attention& a, int64_t token, int64_t head, float* scratch) {
  const AttentionShape& s = a.shape;
  const int64_t dim = s.head_dim, stride = s.num_kv_heads * dim, positions = a.position + token + 1;
  const int64_t kv = head / (s.num_heads / s.num_kv_heads), at = token * s.num_heads + head;
  const float* const query = a.queries + at * dim;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim));
  for (int64_t j = 0; j < positions; ++j) scratch[j] = dot(query, a.keys + j * stride + kv * dim, dim) * scale;
  const F16 share = set(1.0f / softmax(scratch, positions));
  const float* const gate = a.query_gate + at * 2 * dim + dim;
  float* const out = a.out + at * dim;
  int64_t d = 0;
  for (; d + SPAN * LANES <= dim; d += SPAN * LANES)
    mix<SPAN>(scratch, positions, a.values + kv * dim + d, stride, share, gate + d, out + d, SPAN * LANES);
  for (; d < dim; d += LANES)
    mix<1>(scratch, positions, a.values + kv * dim + d, stride, share, gate + d, out + d, dim - d);
}

}  // namespace moepack::MOEPACK_ISA
