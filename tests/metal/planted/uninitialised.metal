// Threadgroup memory that is read before this threadgroup has written it.
#include <metal_stdlib>
using namespace metal;

kernel void only_one_is_written(device float* y [[buffer(0)]],
                                threadgroup float* t [[threadgroup(0)]],
                                uint i [[thread_index_in_threadgroup]],
                                uint at [[thread_position_in_grid]]) {
  if (i == 0) t[0] = 1.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[at] = t[1];  // fault: uninitialised
}

kernel void sum_from_nothing(device float* y [[buffer(0)]],
                             uint i [[thread_index_in_threadgroup]],
                             uint at [[thread_position_in_grid]]) {
  threadgroup float sums[64];
  sums[i] += 1.0f;  // fault: uninitialised
  y[at] = sums[i];
}

kernel void count_from_nothing(device uint* y [[buffer(0)]], uint at [[thread_position_in_grid]]) {
  threadgroup atomic_uint count;
  atomic_fetch_add_explicit(&count, 1u, memory_order_relaxed);  // fault: uninitialised
  y[at] = at;
}

kernel void half_of_a_vector(device float* y [[buffer(0)]],
                             uint i [[thread_index_in_threadgroup]],
                             uint at [[thread_position_in_grid]]) {
  threadgroup float2 both[64];
  ((threadgroup float*)both)[2 * i] = 1.0f;
  y[at] = both[i].x;  // fault: uninitialised
}

kernel void sound_count(device uint* y [[buffer(0)]],
                        uint i [[thread_index_in_threadgroup]],
                        uint at [[thread_position_in_grid]]) {
  threadgroup atomic_uint count;
  threadgroup float sums[64];
  if (i == 0) atomic_store_explicit(&count, 0u, memory_order_relaxed);
  sums[i] = 0.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&count, 1u, memory_order_relaxed);
  sums[i] += 1.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[at] = atomic_load_explicit(&count, memory_order_relaxed) + uint(sums[63 - i]);
}
