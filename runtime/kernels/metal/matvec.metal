// Products of stored matrices with one token's activations: y = W x, y += W x, and silu(G x) * (U x).
//
// Macro: MATRIX, the format of all matrices of a launch, such as Affine<4, 64, Bf16>.
// Grid: (ceil(rows / ROWS_AT_ONCE), tokens, products) threadgroups of THREADS; `rows` are those of the tallest matrix.
// Threadgroup memory: STAGED_FLOATS floats, the input; see rows.h.

#include "rows.h"

// One of several products of the same input: y[out + token * rows + r]. Host: struct "<4Q2IQ".
struct Product {
  Matrix matrix;
  ulong out;
};

// The rows of one product that a threadgroup computes.
template <typename Write>
inline void multiply_rows(device const uchar* weights, device const float* x, device float* y,
                          constant Product& product, uint3 at, threadgroup float* staged, Thread t) {
  const Parts m = parts_of(weights, product.matrix);
  if (at.x * ROWS_AT_ONCE >= m.rows) return;
  const uint row = first_row(at.x, t);
  float sums[ROWS];
  multiply<MATRIX>(m, row, x + ulong(at.y) * m.cols, staged, t, sums);
  device float* const to = y + product.out + ulong(at.y) * m.rows;
  if (t.lane == 0)
    for (uint r = row; r < min(row + ROWS, m.rows); ++r) Write::write(to + r, sums[r - row]);
}

// y[token, r] = sum over c of W[r, c] x[token, c]. x [tokens, cols]; y [tokens, rows] of each product, at its `out`.
kernel void matvec(device const uchar* weights [[buffer(0)]],
                   device const float* x [[buffer(1)]],
                   device float* y [[buffer(2)]],
                   constant Product* products [[buffer(3)]],
                   uint3 at [[threadgroup_position_in_grid]],
                   uint lane [[thread_index_in_simdgroup]],
                   uint group [[simdgroup_index_in_threadgroup]]) {
  threadgroup float staged[STAGED_FLOATS];
  multiply_rows<Set>(weights, x, y, products[at.z], at, staged, {lane, group});
}

// The same, added to y.
kernel void matvec_add(device const uchar* weights [[buffer(0)]],
                       device const float* x [[buffer(1)]],
                       device float* y [[buffer(2)]],
                       constant Product* products [[buffer(3)]],
                       uint3 at [[threadgroup_position_in_grid]],
                       uint lane [[thread_index_in_simdgroup]],
                       uint group [[simdgroup_index_in_threadgroup]]) {
  threadgroup float staged[STAGED_FLOATS];
  multiply_rows<Add>(weights, x, y, products[at.z], at, staged, {lane, group});
}

// h[token, r] = silu(G[r] . x[token]) * (U[r] . x[token]); products[0] is G, products[1] is U, of the same shape.
// h [tokens, rows]. Grid: (ceil(rows / ROWS_AT_ONCE), tokens, 1).
kernel void matvec_gated(device const uchar* weights [[buffer(0)]],
                         device const float* x [[buffer(1)]],
                         device float* h [[buffer(2)]],
                         constant Product* products [[buffer(3)]],
                         uint3 at [[threadgroup_position_in_grid]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint group [[simdgroup_index_in_threadgroup]]) {
  threadgroup float staged[STAGED_FLOATS];
  const Parts gate = parts_of(weights, products[0].matrix), up = parts_of(weights, products[1].matrix);
  const Thread t = {lane, group};
  const uint row = first_row(at.x, t);
  float values[ROWS];
  multiply_gated<MATRIX, MATRIX>(gate, up, row, x + ulong(at.y) * gate.cols, staged, t, values);
  device float* const to = h + ulong(at.y) * gate.rows;
  if (lane == 0)
    for (uint r = row; r < min(row + ROWS, gate.rows); ++r) to[r] = values[r - row];
}
