// One token's experts, all K at once, from the cache slots that hold their records; then their weighted sum.
//
// No argument depends on what the router chose: kernels are encoded before, and read a table that the host fills in
// once the records are in memory.
//
// Macros, of the layer's record layout: GATE, UP, DOWN, the formats; {GATE,UP,DOWN}_{WEIGHT,SCALES,BIASES,GRIDS}, where
// in a record the parts of each lie (0 for those that the format lacks); HIDDEN_SIZE, MOE_INTERMEDIATE_SIZE.
// Formula (transformers' Qwen3_5MoeSparseMoeBlock): x + sum over k of weight[k] * down_k(silu(gate_k n) * (up_k n))
// + sigmoid(g) * shared, with n the normed x.

#include "rows.h"

constant constexpr uint ARENAS = 4;

// Where a chosen expert's record lies. Host: struct "<Q2I".
struct Slot {
  ulong offset;
  uint arena, padding;
};

inline device const uchar* record_of(device const Slot& slot, device const uchar* a, device const uchar* b,
                                     device const uchar* c, device const uchar* d) {
  return (slot.arena == 0 ? a : slot.arena == 1 ? b : slot.arena == 2 ? c : d) + slot.offset;
}

inline Parts gate_of(device const uchar* record) {
  return {record + GATE_WEIGHT, record + GATE_SCALES,  record + GATE_BIASES,
          record + GATE_GRIDS,  MOE_INTERMEDIATE_SIZE, HIDDEN_SIZE};
}

inline Parts up_of(device const uchar* record) {
  return {record + UP_WEIGHT, record + UP_SCALES,    record + UP_BIASES,
          record + UP_GRIDS,  MOE_INTERMEDIATE_SIZE, HIDDEN_SIZE};
}

inline Parts down_of(device const uchar* record) {
  return {record + DOWN_WEIGHT, record + DOWN_SCALES, record + DOWN_BIASES,
          record + DOWN_GRIDS,  HIDDEN_SIZE,          MOE_INTERMEDIATE_SIZE};
}

// h[k] = silu(gate_k x) * (up_k x). slots [K]; x [HIDDEN_SIZE]; h [K, MOE_INTERMEDIATE_SIZE].
// Grid: (ceil(MOE_INTERMEDIATE_SIZE / ROWS_AT_ONCE), K) threadgroups of THREADS. Threadgroup memory: STAGED_FLOATS floats.
kernel void experts_gated(device const uchar* arena_0 [[buffer(0)]],
                          device const uchar* arena_1 [[buffer(1)]],
                          device const uchar* arena_2 [[buffer(2)]],
                          device const uchar* arena_3 [[buffer(3)]],
                          device const Slot* slots [[buffer(4)]],
                          device const float* x [[buffer(5)]],
                          device float* h [[buffer(6)]],
                          uint2 at [[threadgroup_position_in_grid]],
                          uint lane [[thread_index_in_simdgroup]],
                          uint group [[simdgroup_index_in_threadgroup]]) {
  threadgroup float staged[STAGED_FLOATS];
  device const uchar* const record = record_of(slots[at.y], arena_0, arena_1, arena_2, arena_3);
  const Parts gate = gate_of(record), up = up_of(record);
  const Thread t = {lane, group};
  const uint row = first_row(at.x, t);
  float values[ROWS];
  multiply_gated<GATE, UP>(gate, up, row, x, staged, t, values);
  device float* const to = h + at.y * MOE_INTERMEDIATE_SIZE;
  if (lane == 0)
    for (uint r = row; r < min(row + ROWS, gate.rows); ++r) to[r] = values[r - row];
}

// y[k] = down_k h[k]. slots [K]; h [K, MOE_INTERMEDIATE_SIZE]; y [K, HIDDEN_SIZE].
// Grid: (ceil(HIDDEN_SIZE / ROWS_AT_ONCE), K) threadgroups of THREADS. Threadgroup memory: STAGED_FLOATS floats.
kernel void experts_down(device const uchar* arena_0 [[buffer(0)]],
                         device const uchar* arena_1 [[buffer(1)]],
                         device const uchar* arena_2 [[buffer(2)]],
                         device const uchar* arena_3 [[buffer(3)]],
                         device const Slot* slots [[buffer(4)]],
                         device const float* h [[buffer(5)]],
                         device float* y [[buffer(6)]],
                         uint2 at [[threadgroup_position_in_grid]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint group [[simdgroup_index_in_threadgroup]]) {
  threadgroup float staged[STAGED_FLOATS];
  const Parts down = down_of(record_of(slots[at.y], arena_0, arena_1, arena_2, arena_3));
  const Thread t = {lane, group};
  const uint row = first_row(at.x, t);
  float sums[ROWS];
  multiply<DOWN>(down, row, h + at.y * MOE_INTERMEDIATE_SIZE, staged, t, sums);
  device float* const to = y + at.y * HIDDEN_SIZE;
  if (lane == 0)
    for (uint r = row; r < min(row + ROWS, down.rows); ++r) to[r] = sums[r - row];
}
