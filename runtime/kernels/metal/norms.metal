// RMS norms: y = x / sqrt(mean(x^2) + eps) * weight, of each row; and the same times silu(gate).

#include "numbers.h"

// Host: struct "<If".
struct Norm {
  uint width;
  float eps;
};

// x, y [rows, width]; weight [width]. Grid: `rows` threadgroups of THREADS. Threadgroup memory: SIMD_GROUPS floats.
kernel void rms_norm(device const float* x [[buffer(0)]],
                     device const float* weight [[buffer(1)]],
                     device float* y [[buffer(2)]],
                     constant Norm& norm [[buffer(3)]],
                     uint row [[threadgroup_position_in_grid]],
                     uint thread_index [[thread_index_in_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]],
                     uint group [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partial[SIMD_GROUPS];
  const ulong start = ulong(row) * norm.width;
  float squares = 0.0f;
  for (uint c = thread_index; c < norm.width; c += THREADS) squares = fma(x[start + c], x[start + c], squares);
  const float mean = sum_of_all(squares, partial, group, lane) / float(norm.width);
  const float scale = 1.0f / precise::sqrt(mean + norm.eps);
  for (uint c = thread_index; c < norm.width; c += THREADS) y[start + c] = x[start + c] * scale * weight[c];
}

// y = rms_norm(x) * silu(gate): what a Gated DeltaNet gives, head by head (transformers' Qwen3_5MoeRMSNormGated).
// x, gate, y [rows, width], a head in each row; weight [width]. x and y may be the same.
// Grid: ceil(rows / SIMD_GROUPS) threadgroups of THREADS: a SIMD group for each row. Host: struct "<IfI".
struct GatedNorm {
  uint width;
  float eps;
  uint rows;
};

kernel void gated_rms_norm(device const float* x [[buffer(0)]],
                           device const float* weight [[buffer(1)]],
                           device const float* gate [[buffer(2)]],
                           device float* y [[buffer(3)]],
                           constant GatedNorm& norm [[buffer(4)]],
                           uint at [[threadgroup_position_in_grid]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint group [[simdgroup_index_in_threadgroup]]) {
  const uint row = at * SIMD_GROUPS + group;
  if (row >= norm.rows) return;
  const ulong start = ulong(row) * norm.width;
  const float mean = sum_of_squares(x + start, norm.width, lane) / float(norm.width);
  const float scale = 1.0f / precise::sqrt(mean + norm.eps);
  for (uint c = lane; c < norm.width; c += LANES)
    y[start + c] = x[start + c] * scale * weight[c] * silu(gate[start + c]);
}
