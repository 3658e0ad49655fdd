// Writes to what a kernel has promised not to write. Buffers whose name ends in `_again` are the one at index 0.
#include <metal_stdlib>
using namespace metal;

kernel void const_cast_away(device const float* x [[buffer(0)]], uint at [[thread_position_in_grid]]) {
  ((device float*)x)[at] = 1.0f;  // fault: const-write
}

struct Row {
  float a, b;
};

static void clear(device const Row* row) {
  ((device Row*)row)->b = 0.0f;  // fault: const-write
}
kernel void const_cast_away_in_a_function(device const Row* rows [[buffer(0)]], uint at [[thread_position_in_grid]]) {
  clear(rows + at);
}

kernel void counted_in_const(device const uint* x [[buffer(0)]]) {
  atomic_fetch_add_explicit((device atomic_uint*)x, 1u, memory_order_relaxed);  // fault: const-write
}

kernel void constant_that_changes(constant float& scale [[buffer(0)]],
                                  device float* scale_again [[buffer(1)]],
                                  uint at [[thread_position_in_grid]]) {
  if (at == 0) scale_again[0] = scale + 1.0f;  // fault: constant-misuse
}

kernel void constant_that_is_counted(constant uint* table [[buffer(0)]], device atomic_uint* table_again [[buffer(1)]]) {
  atomic_fetch_max_explicit(table_again, table[1], memory_order_relaxed);  // fault: constant-misuse
}

kernel void sound_constant(constant float& scale [[buffer(0)]],
                           device float* y [[buffer(1)]],
                           uint at [[thread_position_in_grid]]) {
  y[at] = scale + 1.0f;
}

kernel void sound_memory_read_twice(device const float* x [[buffer(0)]],
                                    constant float* x_again [[buffer(1)]],
                                    device float* y [[buffer(2)]],
                                    uint at [[thread_position_in_grid]]) {
  y[at] = x[at] + x_again[at];
}
