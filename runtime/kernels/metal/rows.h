// Products of a matrix with one input: a threadgroup takes ROWS_AT_ONCE rows, each of its SIMD groups ROWS of them.
//
// The input is staged in threadgroup memory, STAGED columns at a time, so that any width fits. A lane takes its sixteen
// columns of a tile into registers and uses them for all rows of its SIMD group. A sum has one order: tile by tile in
// each lane, then over the lanes.

#include "codes.h"

constant constexpr uint ROWS = 4;
constant constexpr uint ROWS_AT_ONCE = SIMD_GROUPS * ROWS;
constant constexpr uint STAGED = 4 * TILE;
constant constexpr uint STAGED_FLOATS = STAGED + STAGED / PIECE;  // 8,704 bytes

// The first row of a thread's SIMD group in a threadgroup.
inline uint first_row(uint threadgroup_index, thread const Thread& t) {
  return threadgroup_index * ROWS_AT_ONCE + t.group * ROWS;
}

// Where a staged column lies: a float left out after every sixteen spreads the lanes' reads over the memory's banks.
inline uint staged_at(uint column) { return column + column / PIECE; }

// Stages columns first, first + 1, ... of x, and zeros up to the end of the tile in which x ends.
inline void stage(device const float* x, uint cols, uint first, threadgroup float* staged, thread const Thread& t) {
  const uint left = (cols - first + TILE - 1) / TILE * TILE;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // what was staged before has been read
  for (uint c = t.index(); c < min(left, STAGED); c += THREADS)
    staged[staged_at(c)] = first + c < cols ? x[first + c] : 0.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Adds the products of a tile's columns to the sums of ROWS rows. `first` is the first staged column.
template <typename Format>
inline void add_tile(thread const Parts& m, uint row, uint tile, uint first, threadgroup const float* staged, uint lane,
                     thread float* sums) {
  float x[PIECE], total = 0.0f;
  for (uint i = 0; i < PIECE; ++i) {
    x[i] = staged[staged_at(tile - first + Format::place(lane, i))];
    total += x[i];
  }
  for (uint r = 0; r < ROWS; ++r)
    if (row + r < m.rows) sums[r] += Format::product(m, row + r, tile, lane, x, total);
}

// The sum over the lanes, in every lane, times the row's scale.
template <typename Format> inline float finish(thread const Parts& m, uint row, float sum) {
  const float all = simd_sum(sum);
  return row < m.rows ? all * Format::scale(m, row) : 0.0f;
}

// sums[r] = matrix[row + r] . x, in every lane.
template <typename Format>
inline void multiply(thread const Parts& m, uint row, device const float* x, threadgroup float* staged,
                     thread const Thread& t, thread float* sums) {
  for (uint r = 0; r < ROWS; ++r) sums[r] = 0.0f;
  for (uint first = 0; first < m.cols; first += STAGED) {
    stage(x, m.cols, first, staged, t);
    for (uint tile = first; tile < min(first + STAGED, m.cols); tile += TILE)
      add_tile<Format>(m, row, tile, first, staged, t.lane, sums);
  }
  for (uint r = 0; r < ROWS; ++r) sums[r] = finish<Format>(m, row + r, sums[r]);
}

// h[r] = silu(gate[row + r] . x) * (up[row + r] . x), in every lane; both matrices have the same shape.
template <typename Gate, typename Up>
inline void multiply_gated(thread const Parts& gate, thread const Parts& up, uint row, device const float* x,
                           threadgroup float* staged, thread const Thread& t, thread float* h) {
  float gates[ROWS] = {}, ups[ROWS] = {};
  for (uint first = 0; first < gate.cols; first += STAGED) {
    stage(x, gate.cols, first, staged, t);
    for (uint tile = first; tile < min(first + STAGED, gate.cols); tile += TILE) {
      add_tile<Gate>(gate, row, tile, first, staged, t.lane, gates);
      add_tile<Up>(up, row, tile, first, staged, t.lane, ups);
    }
  }
  for (uint r = 0; r < ROWS; ++r)
    h[r] = silu(finish<Gate>(gate, row + r, gates[r])) * finish<Up>(up, row + r, ups[r]);
}
