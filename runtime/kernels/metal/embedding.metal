// Rows of the embedding table, as float32.

#include "codes.h"

// x[token] = row ids[token] of the table. ids [tokens], below the table's rows; x [tokens, cols]. Macro: MATRIX.
// Grid: (ceil(cols / TILE), tokens) threadgroups of LANES: a piece for each thread.
kernel void embed(device const uchar* weights [[buffer(0)]],
                  constant Matrix& table [[buffer(1)]],
                  device const uint* ids [[buffer(2)]],
                  device float* x [[buffer(3)]],
                  uint2 at [[threadgroup_position_in_grid]],
                  uint lane [[thread_index_in_simdgroup]]) {
  const Parts m = parts_of(weights, table);
  const uint piece = at.x * LANES + lane, row = ids[at.y];
  if (piece * PIECE >= m.cols) return;
  float values[PIECE];
  MATRIX::weights(m, row, piece, values);
  device float* const to = x + ulong(at.y) * m.cols;
  const float scale = MATRIX::scale(m, row);
  for (uint i = 0; i < PIECE && piece * PIECE + i < m.cols; ++i) to[piece * PIECE + i] = values[i] * scale;
}
