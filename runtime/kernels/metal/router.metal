// The router's choice: softmax over all experts, the K largest, renormalised (transformers' Qwen3_5MoeTopKRouter).

#include "numbers.h"

constant constexpr float LARGEST = 3.40282347e38f;
constant constexpr uint OWN = (NUM_EXPERTS + LANES - 1) / LANES;  // experts of a lane

// Not finite are logits that damaged weights gave: infinities count as the largest numbers, and what is not a number as
// the least. So there always are K distinct ids and finite weights.
inline float finite(float logit) { return !(logit > -LARGEST) ? -LARGEST : min(logit, LARGEST); }

// A lane's experts lane, lane + LANES, ...: exponentials of their logits against the largest of all; -2 past the last.
inline void exponentials(device const float* logits, uint lane, thread float* values) {
  float most = -LARGEST;
  for (uint i = 0; i < OWN; ++i) {
    values[i] = i * LANES + lane < NUM_EXPERTS ? finite(logits[i * LANES + lane]) : -LARGEST;
    most = max(most, values[i]);
  }
  most = simd_max(most);
  for (uint i = 0; i < OWN; ++i) values[i] = i * LANES + lane < NUM_EXPERTS ? precise::exp(values[i] - most) : -2.0f;
}

// The largest of all lanes' values and its expert, the lowest of equal ones, in every lane; it becomes -1, below every
// exponential, so that it is never chosen again.
inline Candidate take_best(thread float* values, uint lane) {
  Candidate own = {-2.0f, NOBODY};
  for (uint i = 0; i < OWN; ++i)
    if (values[i] > own.value) own = {values[i], i * LANES + lane};
  const Candidate best = first_of_group(own);
  for (uint i = 0; i < OWN; ++i)
    if (i * LANES + lane == best.id) values[i] = -1.0f;
  return best;
}

// How many of the chosen have a lower id than this lane's.
inline uint rank_of(uint id) {
  uint rank = 0;
  for (uint k = 0; k < NUM_EXPERTS_PER_TOK; ++k) rank += simd_broadcast(id, k) < id;
  return rank;
}

// ids, weights [tokens, K], likeliest first, ties to the lower id; order [tokens, K]: the places of the ids, ascending by
// id. logits [tokens, NUM_EXPERTS]. Macros: NUM_EXPERTS, NUM_EXPERTS_PER_TOK (K, at most LANES): lane k keeps the k-th
// choice. Grid: `tokens` threadgroups of LANES.
kernel void route(device const float* logits [[buffer(0)]],
                  device uint* ids [[buffer(1)]],
                  device float* weights [[buffer(2)]],
                  device uint* order [[buffer(3)]],
                  uint token [[threadgroup_position_in_grid]],
                  uint lane [[thread_index_in_simdgroup]]) {
  float values[OWN], total = 0.0f;
  exponentials(logits + ulong(token) * NUM_EXPERTS, lane, values);
  Candidate chosen = {0.0f, NOBODY};
  for (uint k = 0; k < NUM_EXPERTS_PER_TOK; ++k) {
    const Candidate best = take_best(values, lane);
    total += best.value;
    if (lane == k) chosen = best;
  }
  const uint rank = rank_of(chosen.id), start = token * NUM_EXPERTS_PER_TOK;
  if (lane >= NUM_EXPERTS_PER_TOK) return;
  ids[start + lane] = chosen.id;
  weights[start + lane] = chosen.value / total;
  order[start + rank] = lane;
}
