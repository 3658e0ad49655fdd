// Threads that part where they must stay together. Programs that are not checked find these too.
#include <metal_stdlib>
using namespace metal;

kernel void barrier_for_some(device float* y [[buffer(0)]],
                             uint i [[thread_index_in_threadgroup]],
                             uint at [[thread_position_in_grid]]) {
  if (i < 40) threadgroup_barrier(mem_flags::mem_threadgroup);  // fault: divergence
  y[at] = 1.0f;
}

kernel void returned_before_a_barrier(device float* y [[buffer(0)]],
                                      uint i [[thread_index_in_threadgroup]],
                                      uint at [[thread_position_in_grid]]) {
  if (i == 63) return;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // fault: divergence
  y[at] = 1.0f;
}

kernel void two_barriers(uint simd [[simdgroup_index_in_threadgroup]]) {
  if (simd == 0)
    threadgroup_barrier(mem_flags::mem_threadgroup);  // fault: divergence
  else
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

kernel void two_sums(device float* y [[buffer(0)]],
                     uint lane [[thread_index_in_simdgroup]],
                     uint at [[thread_position_in_grid]]) {
  float v = 1.0f;
  if (lane < 16)
    v = simd_sum(v);  // fault: divergence
  else
    v = simd_max(v);
  y[at] = v;
}

kernel void rounds_of_different_number(device float* y [[buffer(0)]],
                                       uint lane [[thread_index_in_simdgroup]],
                                       uint at [[thread_position_in_grid]]) {
  float v = 0.0f;
  for (uint i = lane; i < 40; i += 32) v += simd_sum(1.0f);  // fault: divergence
  y[at] = simd_max(v);
}

kernel void shuffle_from_the_returned(device float* y [[buffer(0)]],
                                      uint lane [[thread_index_in_simdgroup]],
                                      uint at [[thread_position_in_grid]]) {
  if (lane >= 16) return;
  y[at] = simd_shuffle_xor(1.0f, 16);  // fault: divergence
}

kernel void sound_after_some_returned(device float* y [[buffer(0)]],
                                      uint lane [[thread_index_in_simdgroup]],
                                      uint at [[thread_position_in_grid]]) {
  if (lane >= 16) return;
  y[at] = simd_sum(1.0f) + simd_shuffle_xor(1.0f, 8);
}

kernel void sound_whole_simdgroup_apart(device float* y [[buffer(0)]],
                                        uint simd [[simdgroup_index_in_threadgroup]],
                                        uint at [[thread_position_in_grid]]) {
  if (simd == 1) y[at] = simd_sum(1.0f);
  threadgroup_barrier(mem_flags::mem_none);
}

kernel void too_much_memory(device float* y [[buffer(0)]],
                            threadgroup float* t [[threadgroup(0)]],
                            uint i [[thread_index_in_threadgroup]]) {
  threadgroup float big[8192];  // fault: threadgroup-memory
  big[i] = 1.0f;
  t[i] = big[i];
}
