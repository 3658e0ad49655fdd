// Accesses that no barrier orders. A comment `fault: kind` names what must be found on its line, by a checker that has
// threads run in ascending order; kernels called sound_... do it rightly, and nothing may be found in them.
#include <metal_stdlib>
using namespace metal;

kernel void missing_barrier(device float* y [[buffer(0)]],
                            threadgroup float* t [[threadgroup(0)]],
                            uint i [[thread_index_in_threadgroup]],
                            uint at [[thread_position_in_grid]]) {
  t[i] = float(i);    // fault: race
  y[at] = t[63 - i];  // fault: race fault: uninitialised
}

kernel void sound_barrier(device float* y [[buffer(0)]],
                          threadgroup float* t [[threadgroup(0)]],
                          uint i [[thread_index_in_threadgroup]],
                          uint at [[thread_position_in_grid]]) {
  t[i] = float(i);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[at] = t[63 - i];
}

// Read after a barrier, and overwritten in the next round without another.
kernel void overwritten_in_the_next_round(device float* y [[buffer(0)]],
                                          uint i [[thread_index_in_threadgroup]],
                                          uint at [[thread_position_in_grid]]) {
  threadgroup float t[64];
  float sum = 0.0f;
  for (uint round = 0; round < 3; ++round) {
    t[i] = float(i + round);  // fault: race
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += t[(i + 1) % 64];  // fault: race
  }
  y[at] = sum;
}

kernel void sound_rounds(device float* y [[buffer(0)]],
                         uint i [[thread_index_in_threadgroup]],
                         uint at [[thread_position_in_grid]]) {
  threadgroup float t[64];
  float sum = 0.0f;
  for (uint round = 0; round < 3; ++round) {
    t[i] = float(i + round);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += t[(i + 1) % 64];
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  y[at] = sum;
}

kernel void barrier_for_the_wrong_memory(device float* y [[buffer(0)]],
                                         uint i [[thread_index_in_threadgroup]],
                                         uint at [[thread_position_in_grid]]) {
  threadgroup float t[64];
  t[i] = float(i);
  threadgroup_barrier(mem_flags::mem_device);
  y[at] = t[i ^ 1];  // fault: race
}

// SIMD functions bring lanes together, but promise nothing about memory; and other SIMD groups are not waited for.
kernel void simd_function_for_a_barrier(device float* y [[buffer(0)]],
                                        uint i [[thread_index_in_threadgroup]],
                                        uint at [[thread_position_in_grid]]) {
  threadgroup float t[64];
  t[i] = simd_sum(1.0f);  // fault: race
  y[at] = t[i ^ 1];       // fault: race fault: uninitialised
}

kernel void simdgroup_barrier_for_two_groups(device float* y [[buffer(0)]],
                                             uint i [[thread_index_in_threadgroup]],
                                             uint at [[thread_position_in_grid]]) {
  threadgroup float t[64];
  t[i] = 1.0f;  // fault: race
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[at] = t[i ^ 32];  // fault: race fault: uninitialised
}

kernel void sound_simdgroup_barrier(device float* y [[buffer(0)]],
                                    uint i [[thread_index_in_threadgroup]],
                                    uint at [[thread_position_in_grid]]) {
  threadgroup float t[64];
  t[i] = 1.0f;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[at] = t[i ^ 31];
}

// Everyone stores the same: still a race.
kernel void all_write_one(uint i [[thread_index_in_threadgroup]], device float* y [[buffer(0)]]) {
  threadgroup float t;
  t = 1.0f;  // fault: race
  if (i == 0) y[0] = 2.0f;  // fault: race
}

kernel void bytes_of_one_word(device uchar* y [[buffer(0)]], uint at [[thread_position_in_grid]]) {
  y[at / 2] = uchar(1);  // fault: race
}

kernel void sound_bytes_of_one_word(device uchar* y [[buffer(0)]], uint at [[thread_position_in_grid]]) {
  y[at] = uchar(1);
}

kernel void threadgroup_reads_anothers(device float* y [[buffer(0)]],
                                       uint at [[thread_position_in_grid]],
                                       uint group [[threadgroup_position_in_grid]]) {
  y[at] = 1.0f;
  threadgroup_barrier(mem_flags::mem_device);
  if (group == 1) y[at] += y[at - 64];  // fault: race
}

// The readers are many, the writer is one of them, and only another threadgroup has read besides.
kernel void written_where_others_read(device float* y [[buffer(0)]],
                                      device float* z [[buffer(1)]],
                                      uint i [[thread_index_in_threadgroup]],
                                      uint at [[thread_position_in_grid]],
                                      uint group [[threadgroup_position_in_grid]]) {
  z[at] = y[0];
  threadgroup_barrier(mem_flags::mem_device);
  if (group == 1 && i == 33) y[0] = 1.0f;  // fault: race
}

kernel void device_memory_in_one_threadgroup(device float* y [[buffer(0)]],
                                             device float* z [[buffer(1)]],
                                             uint at [[thread_position_in_grid]]) {
  y[at] = 1.0f;       // fault: race
  z[at] = y[at ^ 1];  // fault: race
}

kernel void sound_device_memory_in_one_threadgroup(device float* y [[buffer(0)]],
                                                   device float* z [[buffer(1)]],
                                                   uint at [[thread_position_in_grid]]) {
  y[at] = 1.0f;
  threadgroup_barrier(mem_flags::mem_device);
  z[at] = y[at ^ 1];
}

kernel void atomic_and_plain(device atomic_uint* count [[buffer(0)]], device uint* count_again [[buffer(1)]]) {
  atomic_fetch_add_explicit(count, 1u, memory_order_relaxed);  // fault: race
  count_again[0] += 1u;  // fault: race
}

kernel void sound_atomics(device atomic_uint* count [[buffer(0)]], device atomic_float* sum [[buffer(1)]]) {
  atomic_fetch_add_explicit(count, 1u, memory_order_relaxed);
  atomic_fetch_add_explicit(sum, 0.5f, memory_order_relaxed);
  atomic_load_explicit(count, memory_order_relaxed);
}

kernel void matrices_stored_over_each_other(device float* y [[buffer(0)]]) {
  const simdgroup_float8x8 m = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
  simdgroup_store(m, y, 8);  // fault: race
}

kernel void sound_matrices(device float* y [[buffer(0)]],
                           uint group [[threadgroup_position_in_grid]],
                           uint simd [[simdgroup_index_in_threadgroup]]) {
  const simdgroup_float8x8 m = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
  simdgroup_store(m, y + (group * 2 + simd) * 64, 8);
}

// The only SIMD group that reads is the writer's, and the writer the last to read.
kernel void written_by_the_last_reader(device float* y [[buffer(0)]],
                                       device float* z [[buffer(1)]],
                                       uint at [[thread_position_in_grid]]) {
  if (at >= 32) return;
  z[at] = y[0];
  if (at == 31) y[0] = 1.0f;  // fault: race
}

// The writer's own SIMD group is done with reading, and the other one is not.
kernel void written_while_the_other_group_reads(device float* y [[buffer(0)]],
                                                device float* z [[buffer(1)]],
                                                uint at [[thread_position_in_grid]]) {
  if (at >= 64) return;
  z[at] = y[0];
  simdgroup_barrier(mem_flags::mem_device);
  if (at == 63) y[0] = 1.0f;  // fault: race
}

kernel void sound_written_when_its_group_has_read(device float* y [[buffer(0)]],
                                                  device float* z [[buffer(1)]],
                                                  uint at [[thread_position_in_grid]]) {
  if (at >= 32) return;
  z[at] = y[0];
  simdgroup_barrier(mem_flags::mem_device);
  if (at == 31) y[0] = 1.0f;
}

kernel void barrier_for_threadgroup_memory_only(device float* y [[buffer(0)]],
                                                device float* z [[buffer(1)]],
                                                uint at [[thread_position_in_grid]]) {
  y[at] = 1.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  z[at] = y[at ^ 1];  // fault: race
}

kernel void count_read_plainly(device atomic_uint* count [[buffer(0)]],
                               device const uint* count_again [[buffer(1)]],
                               device uint* y [[buffer(2)]],
                               uint at [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(count, 1u, memory_order_relaxed);  // fault: race
  y[at] = count_again[0];                                      // fault: race
}

kernel void written_plainly_where_others_load(device const atomic_uint* flag [[buffer(0)]],
                                              device uint* flag_again [[buffer(1)]],
                                              device uint* y [[buffer(2)]],
                                              uint at [[thread_position_in_grid]]) {
  y[at] = atomic_load_explicit(flag, memory_order_relaxed);
  if (at == 127) flag_again[0] = 1u;  // fault: race
}
