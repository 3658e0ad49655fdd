// Accesses outside of what is bound: buffers have 256 floats, threadgroup arguments 64, threads are 2 x 64.
#include <metal_stdlib>
using namespace metal;

constant float TABLE[4] = {1.0f, 2.0f, 3.0f, 4.0f};

struct Size {
  uint n;
};

kernel void read_past_the_end(device const float* x [[buffer(0)]],
                              device float* y [[buffer(1)]],
                              uint at [[thread_position_in_grid]]) {
  y[at] = x[at + 129];  // fault: out-of-bounds
}

kernel void sound_read_to_the_end(device const float* x [[buffer(0)]],
                                  device float* y [[buffer(1)]],
                                  uint at [[thread_position_in_grid]]) {
  y[at] = x[at + 128];
}

kernel void write_before_the_beginning(device float* y [[buffer(0)]], uint at [[thread_position_in_grid]]) {
  device float* end = y + at;
  end[-1] = 0.0f;  // fault: out-of-bounds
}

kernel void vector_over_the_end(device const float4* x [[buffer(0)]],
                                device float* y [[buffer(1)]],
                                uint at [[thread_position_in_grid]]) {
  y[at] = x[at / 2 + 1].x;  // fault: out-of-bounds
}

kernel void half_a_vector_over_the_end(device const float* x [[buffer(0)]],
                                       device float* y [[buffer(1)]],
                                       uint at [[thread_position_in_grid]]) {
  const float2 both = *(device const packed_float2*)(x + at + 128);  // fault: out-of-bounds
  y[at] = both.x + both.y;
}

kernel void past_a_threadgroup_argument(threadgroup float* t [[threadgroup(0)]],
                                        uint i [[thread_index_in_threadgroup]]) {
  t[i + 1] = 0.0f;  // fault: out-of-bounds
}

kernel void past_a_threadgroup_variable(device float* y [[buffer(0)]], uint i [[thread_index_in_threadgroup]]) {
  threadgroup float before[64];
  threadgroup float t[62];
  before[i] = 1.0f;
  t[i] = 0.0f;  // fault: out-of-bounds
}

kernel void past_a_constant_struct(constant Size& size [[buffer(0)]],
                                   device uint* y [[buffer(1)]],
                                   uint at [[thread_position_in_grid]]) {
  y[at] = (&size)[256 + at].n;  // fault: out-of-bounds
}

kernel void past_a_table(device float* y [[buffer(0)]], uint at [[thread_position_in_grid]]) {
  y[at] = TABLE[at % 5];  // fault: out-of-bounds
}

kernel void sound_table(device float* y [[buffer(0)]], uint at [[thread_position_in_grid]]) {
  y[at] = TABLE[at % 4];
}

kernel void matrix_over_the_end(device const float* x [[buffer(0)]], device float* y [[buffer(1)]]) {
  simdgroup_float8x8 m;
  simdgroup_load(m, x + 192, 9);  // fault: out-of-bounds
  if (m.thread_elements()[0] == 7.0f) y[0] = 1.0f;
}

kernel void atomic_over_the_end(device atomic_uint* count [[buffer(0)]]) {
  atomic_fetch_add_explicit(count + 256, 1u, memory_order_relaxed);  // fault: out-of-bounds
}

// What is read in a function is read there, whoever called it.
static float next_of(device const float* x, uint at) {
  return x[at + 1];  // fault: out-of-bounds
}
kernel void past_the_end_in_a_function(device const float* x [[buffer(0)]],
                                       device float* y [[buffer(1)]],
                                       uint at [[thread_position_in_grid]]) {
  y[at] = next_of(x, at + 128);
}
