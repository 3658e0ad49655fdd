// Norms, gates, and the router's choice: work on one token's vector.
#include "declarations.h"

namespace moepack::MOEPACK_ISA {

void rms_norm(const float* x, const float* weight, float eps, float* y, int64_t count) {
  const F16 scale = set(1.0f / __builtin_sqrtf(dot(x, x, count) / static_cast<float>(count) + eps));
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t left = count - i;
    store_up_to(y + i, mul(mul(load_up_to(x + i, left), scale), load_up_to(weight + i, left)), left);
  }
}

void add_share(const float* x, float weight, float* y, int64_t count) {
  const F16 share = set(weight);
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t left = count - i;
    store_up_to(y + i, add(load_up_to(y + i, left), mul(share, load_up_to(x + i, left))), left);
  }
}

void add_gated(const float* x, float gate, float* y, int64_t count) {
  const F16 open = sigmoid(set(gate));
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t left = count - i;
    store_up_to(y + i, add(load_up_to(y + i, left), mul(open, load_up_to(x + i, left))), left);
  }
}

float softmax(float* values, int64_t count) {
  float most = values[0];
  for (int64_t i = 1; i < count; ++i) most = values[i] > most ? values[i] : most;
  F16 sum = set(0.0f);
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t left = count - i;
    store_up_to(values + i, exp(sub(load_up_to(values + i, left), set(most))), left);
    sum = add(sum, load_up_to(values + i, left));
  }
  return reduce_add(sum);
}

namespace {

constexpr float LARGEST = 3.40282347e38f;

// Not finite are logits that damaged weights gave: what is not a number comes last.
inline float finite(float logit) { return !(logit > -LARGEST) ? -LARGEST : logit < LARGEST ? logit : LARGEST; }

}  // namespace

void route(const float* logits, int64_t count, int64_t k, int32_t* ids, float* weights, float* scratch) {
  for (int64_t i = 0; i < count; ++i) scratch[i] = finite(logits[i]);
  softmax(scratch, count);
  float total = 0.0f;
  for (int64_t j = 0; j < k; ++j) {
    int64_t best = 0;
    for (int64_t i = 1; i < count; ++i) best = scratch[i] > scratch[best] ? i : best;
    ids[j] = static_cast<int32_t>(best);
    weights[j] = scratch[best];
    total += scratch[best];
    scratch[best] = -1.0f;  // below every exponential: never chosen again
  }
  for (int64_t j = 0; j < k; ++j) weights[j] /= total;
}

}  // namespace moepack::MOEPACK_ISA
