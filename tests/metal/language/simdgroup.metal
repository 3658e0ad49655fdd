// Functions of a SIMD group, one result per kernel. x [n] goes in, y [n] comes out, n threads.
#include <metal_stdlib>
using namespace metal;

#define EACH(name, T, expression)                                                  \
  kernel void name(device const T* x [[buffer(0)]], device T* y [[buffer(1)]],     \
                   uint at [[thread_position_in_grid]],                            \
                   ushort lane [[thread_index_in_simdgroup]]) {                    \
    const T v = x[at];                                                             \
    y[at] = expression;                                                            \
  }

EACH(sum, float, simd_sum(v))
EACH(largest, float, simd_max(v))
EACH(smallest, float, simd_min(v))
EACH(product, float, simd_product(1.0f + v / 64.0f))
EACH(sum_of_halves, half, simd_sum(v))
EACH(inclusive, int, simd_prefix_inclusive_sum(v))
EACH(exclusive, int, simd_prefix_exclusive_sum(v))
EACH(largest_int, int, simd_max(v))
EACH(smallest_int, int, simd_min(v))
EACH(bits_and, int, simd_and(v))
EACH(bits_or, int, simd_or(v))
EACH(bits_xor, int, simd_xor(v))
EACH(broadcast, float, simd_broadcast(v, 5))
EACH(first, float, simd_broadcast_first(v))
EACH(reversed, float, simd_shuffle(v, 31 - lane))
EACH(butterfly, float, simd_shuffle_xor(v, 9))
EACH(down, float, simd_shuffle_down(v, 3))
EACH(up, float, simd_shuffle_up(v, 3))
EACH(rotated, float, simd_shuffle_rotate_down(v, 3))
EACH(filled, float, simd_shuffle_and_fill_down(v, -v, 3))
EACH(quad, float, quad_sum(v))
EACH(vector, float, simd_sum(float4(v, 2.0f * v, 0.0f, 1.0f)).y)
EACH(is_first, int, simd_is_first() ? 1 : 0)
EACH(any_large, int, simd_any(v > 90) ? 1 : 0)
EACH(all_small, int, simd_all(v < 90) ? 1 : 0)
EACH(ballot, int, int(uint(simd_vote::vote_t(simd_ballot(v > 50)))))

// Many of them after one another, which the double-buffered exchange must keep apart.
kernel void chain(device const float* x [[buffer(0)]],
                  device float* y [[buffer(1)]],
                  uint at [[thread_position_in_grid]]) {
  float v = x[at];
  for (ushort by = 16; by > 0; by /= 2) v += simd_shuffle_down(v, by);
  y[at] = simd_broadcast_first(v);
}

// C = A B + C for [8, 8] matrices, A and B of half, and B's transpose when asked for.
kernel void multiply(device const half* a [[buffer(0)]],
                     device const half* b [[buffer(1)]],
                     device float* c [[buffer(2)]],
                     constant uint& transposed [[buffer(3)]]) {
  simdgroup_half8x8 left, right;
  simdgroup_float8x8 sum;
  simdgroup_load(left, a);
  simdgroup_load(right, b, 8, 0, transposed != 0);
  simdgroup_load(sum, c, 8);
  simdgroup_multiply_accumulate(sum, left, right, sum);
  simdgroup_store(sum, c);
}

// A [8, 8] piece of a larger matrix, through threadgroup memory.
kernel void piece(device const float* x [[buffer(0)]],
                  device float* y [[buffer(1)]],
                  uint i [[thread_index_in_threadgroup]]) {
  threadgroup float t[256];
  for (uint k = i; k < 256; k += 32) t[k] = x[k];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 m;
  simdgroup_load(m, t, 16, ulong2(5, 2));
  m.thread_elements() *= 2.0f;
  simdgroup_store(m, y, 8);
}
