// Gated DeltaNet (transformers' Qwen3_5MoeGatedDeltaNet) in its recurrent form, for one token or a chunk.
//
// qkv = silu(causal depthwise convolution); q = l2norm(q) / sqrt(key_dim), k = l2norm(k); with S the state,
// g = exp(-exp(A_log) softplus(a + dt_bias)) and c = sigmoid(b) (v - g k^T S): S = g S + k (outer) c; o = q^T S.
// out = rms_norm(o) * silu(z) is gated_rms_norm of norms.metal. Value head h reads key head h / (value heads / key heads).
//
// A token's result needs the whole state before it, so a chunk goes token by token; but columns of the state never meet,
// and stay in registers for the whole chunk.
//
// Macros: NUM_KEY_HEADS, NUM_VALUE_HEADS, KEY_HEAD_DIM, VALUE_HEAD_DIM, CONV_KERNEL. Channels are q | k | v.

#include "numbers.h"

constant constexpr uint KEY_WIDTH = NUM_KEY_HEADS * KEY_HEAD_DIM;
constant constexpr uint CHANNELS = 2 * KEY_WIDTH + NUM_VALUE_HEADS * VALUE_HEAD_DIM;

// convolved[t, c] = silu(sum over j of input[t - (CONV_KERNEL - 1) + j, c] * conv[j, c]); inputs before the chunk are
// conv_state, which advances. mixed, convolved [tokens, CHANNELS]; conv [CONV_KERNEL, CHANNELS]; conv_state
// [CONV_KERNEL - 1, CHANNELS]. Host: tokens, "<I". Grid: ceil(CHANNELS / THREADS) threadgroups of THREADS.
kernel void delta_convolve(device const float* mixed [[buffer(0)]],
                           device const float* conv [[buffer(1)]],
                           device float* conv_state [[buffer(2)]],
                           device float* convolved [[buffer(3)]],
                           constant uint& tokens [[buffer(4)]],
                           uint channel [[thread_position_in_grid]]) {
  if (channel >= CHANNELS) return;
  float window[CONV_KERNEL], weights[CONV_KERNEL];
  for (uint j = 0; j < CONV_KERNEL; ++j) weights[j] = conv[j * CHANNELS + channel];
  for (uint j = 0; j + 1 < CONV_KERNEL; ++j) window[j + 1] = conv_state[j * CHANNELS + channel];
  for (uint t = 0; t < tokens; ++t) {
    for (uint j = 0; j + 1 < CONV_KERNEL; ++j) window[j] = window[j + 1];
    window[CONV_KERNEL - 1] = mixed[ulong(t) * CHANNELS + channel];
    float sum = 0.0f;
    for (uint j = 0; j < CONV_KERNEL; ++j) sum = fma(window[j], weights[j], sum);
    convolved[ulong(t) * CHANNELS + channel] = silu(sum);
  }
  for (uint j = 0; j + 1 < CONV_KERNEL; ++j) conv_state[j * CHANNELS + channel] = window[j + 1];
}

// q = q / sqrt(sum q^2 + 1e-6) / sqrt(KEY_HEAD_DIM); k = k / sqrt(sum k^2 + 1e-6); in place in convolved.
// Grid: (ceil(2 * NUM_KEY_HEADS / SIMD_GROUPS), tokens) threadgroups of THREADS: a head for each SIMD group.
kernel void delta_norm(device float* convolved [[buffer(0)]],
                       uint2 at [[threadgroup_position_in_grid]],
                       uint lane [[thread_index_in_simdgroup]],
                       uint group [[simdgroup_index_in_threadgroup]]) {
  const uint head = at.x * SIMD_GROUPS + group;
  if (head >= 2 * NUM_KEY_HEADS) return;
  device float* const x = convolved + ulong(at.y) * CHANNELS + head * KEY_HEAD_DIM;
  const float share = head < NUM_KEY_HEADS ? 1.0f / precise::sqrt(float(KEY_HEAD_DIM)) : 1.0f;
  const float scale = share / precise::sqrt(sum_of_squares(x, KEY_HEAD_DIM, lane) + 1e-6f);
  for (uint d = lane; d < KEY_HEAD_DIM; d += LANES) x[d] *= scale;
}

constant constexpr uint SHARES = 4;                                    // SIMD groups that share a head's key dimensions
constant constexpr uint CELLS = (KEY_HEAD_DIM + SHARES - 1) / SHARES;  // of a column of the state, in a thread

// LANES columns of a head's state: each lane has one, of which each SIMD group has CELLS rows.
struct Columns {
  float cells[CELLS];
  uint first, count;  // of this SIMD group's rows

  Columns(uint group) {
    first = min(group * CELLS, uint(KEY_HEAD_DIM));
    count = min(CELLS, KEY_HEAD_DIM - first);
  }

  // Where a row of a column lies in a head's state.
  static ulong place(uint row, uint column) { return ulong(row) * VALUE_HEAD_DIM + column; }

  void load(device const float* state, uint column) {
    const bool exists = column < VALUE_HEAD_DIM;
    for (uint i = 0; i < CELLS; ++i) cells[i] = exists && i < count ? state[place(first + i, column)] : 0.0f;
  }

  void store(device float* state, uint column) const {
    for (uint i = 0; i < CELLS; ++i)
      if (column < VALUE_HEAD_DIM && i < count) state[place(first + i, column)] = cells[i];
  }

  // The sum over this SIMD group's rows of x[row] * state[row].
  float dot(device const float* x) const {
    float sum = 0.0f;
    for (uint i = 0; i < CELLS; ++i)
      if (i < count) sum = fma(x[first + i], cells[i], sum);
    return sum;
  }

  // state = keep * state + x * change.
  void advance(device const float* x, float keep, float change) {
    for (uint i = 0; i < CELLS; ++i)
      if (i < count) cells[i] = fma(x[first + i], change, cells[i] * keep);
  }
};

// The sum over the SIMD groups of a number of each lane. A barrier lies between writing and reading.
inline float sum_of_shares(float value, threadgroup float (*shares)[LANES], uint group, uint lane) {
  shares[group][lane] = value;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float sum = 0.0f;
  for (uint g = 0; g < SHARES; ++g) sum += shares[g][lane];
  return sum;
}

// The gated delta rule. convolved [tokens, CHANNELS], normed; decay (a), beta (b) [tokens, NUM_VALUE_HEADS]; log_decay
// (A_log), decay_bias (dt_bias) [NUM_VALUE_HEADS]; state [NUM_VALUE_HEADS, KEY_HEAD_DIM, VALUE_HEAD_DIM], advances; out
// [tokens, NUM_VALUE_HEADS, VALUE_HEAD_DIM]. Host: tokens, "<I".
// Grid: (ceil(VALUE_HEAD_DIM / LANES), NUM_VALUE_HEADS) threadgroups of SHARES * LANES. Threadgroup memory: 1 KiB.
kernel void delta_rule(device const float* convolved [[buffer(0)]],
                       device const float* decay [[buffer(1)]],
                       device const float* beta [[buffer(2)]],
                       device const float* log_decay [[buffer(3)]],
                       device const float* decay_bias [[buffer(4)]],
                       device float* state [[buffer(5)]],
                       device float* out [[buffer(6)]],
                       constant uint& tokens [[buffer(7)]],
                       uint2 at [[threadgroup_position_in_grid]],
                       uint lane [[thread_index_in_simdgroup]],
                       uint group [[simdgroup_index_in_threadgroup]]) {
  threadgroup float reads[SHARES][LANES];
  threadgroup float results[SHARES][LANES];
  const uint head = at.y, key_head = head / (NUM_VALUE_HEADS / NUM_KEY_HEADS), column = at.x * LANES + lane;
  const bool exists = column < VALUE_HEAD_DIM;
  device float* const of_head = state + ulong(head) * KEY_HEAD_DIM * VALUE_HEAD_DIM;
  Columns own(group);
  own.load(of_head, column);
  const float rate = precise::exp(log_decay[head]);
  for (uint t = 0; t < tokens; ++t) {
    device const float* const query = convolved + ulong(t) * CHANNELS + key_head * KEY_HEAD_DIM;
    device const float* const key = query + KEY_WIDTH;
    device const float* const value = convolved + ulong(t) * CHANNELS + 2 * KEY_WIDTH + head * VALUE_HEAD_DIM;
    const uint row = t * NUM_VALUE_HEADS + head;
    const float keep = precise::exp(-rate * softplus(decay[row] + decay_bias[head]));
    const float read = sum_of_shares(own.dot(key), reads, group, lane);
    own.advance(key, keep, sigmoid(beta[row]) * ((exists ? value[column] : 0.0f) - keep * read));
    const float result = sum_of_shares(own.dot(query), results, group, lane);
    if (exists && group == 0) out[ulong(row) * VALUE_HEAD_DIM + column] = result;
  }
  own.store(of_head, column);
}
