// The router's choice: softmax over all experts, the K largest, renormalised (transformers' Qwen3_5MoeTopKRouter).

#include "numbers.h"

constant constexpr float LARGEST = 3.40282347e38f;
constant constexpr uint OWN = (NUM_EXPERTS + LANES - 1) / LANES;  // experts of a lane

// Not finite are logits that damaged weights gave: infinities count as the largest numbers, and what is not a number as
// the least. So there always are K distinct ids and finite weights.
inline float finite(float logit) { return !(logit > -LARGEST) ? -LARGEST : min(logit, LARGEST); }

// Of exponentials, a lane's largest not chosen yet and its expert; ties go to the lower id. Chosen ones are -1.
struct Best {
  float value;
  uint id;
};

inline Best best_of(thread const float* values, uint lane) {
  Best best = {-2.0f, NUM_EXPERTS};
  for (uint i = 0; i < OWN; ++i)
    if (values[i] > best.value) best = {values[i], i * LANES + lane};
  return best;
}

// ids, weights [tokens, K], likeliest first, ties to the lower id; order [tokens, K]: the places of the ids, ascending by
// id. logits [tokens, NUM_EXPERTS]. Macros: NUM_EXPERTS, NUM_EXPERTS_PER_TOK (K, at most LANES).
// Grid: `tokens` threadgroups of LANES.
kernel void route(device const float* logits [[buffer(0)]],
                  device uint* ids [[buffer(1)]],
                  device float* weights [[buffer(2)]],
                  device uint* order [[buffer(3)]],
                  uint token [[threadgroup_position_in_grid]],
                  uint lane [[thread_index_in_simdgroup]]) {
  float values[OWN], most = -LARGEST;
  for (uint i = 0; i < OWN; ++i) {
    const uint expert = i * LANES + lane;
    values[i] = expert < NUM_EXPERTS ? finite(logits[ulong(token) * NUM_EXPERTS + expert]) : -INFINITY;
    most = max(most, values[i]);
  }
  most = simd_max(most);
  for (uint i = 0; i < OWN; ++i) values[i] = i * LANES + lane < NUM_EXPERTS ? precise::exp(values[i] - most) : -2.0f;
  float chosen = 0.0f, total = 0.0f;
  uint id = NUM_EXPERTS;  // lane k keeps the k-th choice
  for (uint k = 0; k < NUM_EXPERTS_PER_TOK; ++k) {
    const Best own = best_of(values, lane);
    const float value = simd_max(own.value);
    const uint winner = simd_min(own.value == value ? own.id : NUM_EXPERTS);
    for (uint i = 0; i < OWN; ++i)
      if (i * LANES + lane == winner) values[i] = -1.0f;
    total += value;
    if (lane == k) {
      chosen = value;
      id = winner;
    }
  }
  uint rank = 0;
  for (uint k = 0; k < NUM_EXPERTS_PER_TOK; ++k) rank += simd_broadcast(id, k) < id;
  if (lane >= NUM_EXPERTS_PER_TOK) return;
  const uint start = token * NUM_EXPERTS_PER_TOK;
  ids[start + lane] = id;
  weights[start + lane] = chosen / total;
  order[start + rank] = lane;
}
