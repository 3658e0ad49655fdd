// Products of a stored matrix with many tokens' activations, in prefill: y = X W^T, y += X W^T, and an expert's share of
// the tokens that chose it: gathered rows in, weighted rows out.
//
// A threadgroup computes TOKENS x OUT_ROWS results, DEPTH columns at a time: it unpacks that much of the weights, and
// copies as much of the inputs, into threadgroup memory, where its SIMD groups multiply them as 8 x 8 matrices. A result
// has one order of operations, whatever tokens stand beside it.
//
// Macros: MATRIX, the format; TOKEN_BLOCKS, 1 to 4: blocks of eight tokens.
// Grid: (ceil(rows / OUT_ROWS), ceil(count / TOKENS)) threadgroups of MATMUL_THREADS. Threadgroup memory: SHARED floats
// (13,824 bytes with four blocks). Experts are launched in ascending order; then so are a token's sums.

#include "codes.h"

constant constexpr uint BLOCK = 8;
constant constexpr uint TOKENS = BLOCK * TOKEN_BLOCKS;
constant constexpr uint MATMUL_THREADS = 4 * LANES;
constant constexpr uint OUT_ROWS = 4 * 2 * BLOCK;  // two blocks for each SIMD group
constant constexpr uint DEPTH = 2 * PIECE;
constant constexpr uint PITCH = DEPTH + 4;  // floats from row to row: spreads reads over the memory's banks
constant constexpr uint SHARED = (TOKENS + OUT_ROWS) * PITCH;

static_assert(OUT_ROWS * 2 == MATMUL_THREADS, "a thread unpacks one piece of DEPTH columns of a row");
static_assert(TOKENS * OUT_ROWS <= SHARED, "results take the place of what was multiplied");

// Host: struct "<4Q2II4x".
struct Batch {
  Matrix matrix;
  uint count;  // of tokens
};

// Rows of inputs: row t, or the row that a list names.
struct Straight {
  device const float* x;
  device const float* row(uint t, uint width) const { return x + ulong(t) * width; }
};

struct Gathered {
  device const float* x;
  device const uint* tokens;
  device const float* row(uint t, uint width) const { return x + ulong(tokens[t]) * width; }
};

// Columns column..column + DEPTH of TOKENS inputs, zeros where there are none.
template <typename Inputs>
inline void copy_inputs(thread const Inputs& inputs, uint first, uint count, uint column, uint cols,
                        threadgroup float* to, thread const Thread& t) {
  for (uint i = t.index(); i < TOKENS * DEPTH; i += MATMUL_THREADS) {
    const uint token = first + i / DEPTH, c = column + i % DEPTH;
    to[i / DEPTH * PITCH + i % DEPTH] = token < count && c < cols ? inputs.row(token, cols)[c] : 0.0f;
  }
}

// The same columns of OUT_ROWS rows of the matrix: a piece for each thread.
template <typename Format>
inline void unpack_rows(thread const Parts& m, uint first, uint column, threadgroup float* to, thread const Thread& t) {
  const uint place = t.index() / 2, row = first + place, piece = column / PIECE + t.index() % 2;
  float values[PIECE] = {}, scale = 0.0f;
  if (row < m.rows) {
    Format::weights(m, row, piece, values);
    scale = Format::scale(m, row);
  }
  for (uint i = 0; i < PIECE; ++i) to[place * PITCH + t.index() % 2 * PIECE + i] = values[i] * scale;
}

// One SIMD group's results: those of all TOKENS with its two blocks of rows.
struct Results {
  simdgroup_float8x8 sums[TOKEN_BLOCKS][2];

  Results() {
    for (uint i = 0; i < TOKEN_BLOCKS; ++i)
      for (uint j = 0; j < 2; ++j) sums[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }

  // inputs [TOKENS, DEPTH]; weights: this SIMD group's [2 * BLOCK, DEPTH]; rows lie PITCH floats apart.
  void add(threadgroup const float* inputs, threadgroup const float* weights) {
    for (uint c = 0; c < DEPTH; c += BLOCK) {
      simdgroup_float8x8 a[TOKEN_BLOCKS], b[2];
      for (uint i = 0; i < TOKEN_BLOCKS; ++i) simdgroup_load(a[i], inputs + i * BLOCK * PITCH + c, PITCH);
      for (uint j = 0; j < 2; ++j) simdgroup_load(b[j], weights + j * BLOCK * PITCH + c, PITCH, ulong2(0, 0), true);
      for (uint i = 0; i < TOKEN_BLOCKS; ++i)
        for (uint j = 0; j < 2; ++j) simdgroup_multiply_accumulate(sums[i][j], a[i], b[j], sums[i][j]);
    }
  }

  void store(threadgroup float* to) const {
    for (uint i = 0; i < TOKEN_BLOCKS; ++i)
      for (uint j = 0; j < 2; ++j) simdgroup_store(sums[i][j], to + i * BLOCK * OUT_ROWS + j * BLOCK, OUT_ROWS);
  }
};

// Leaves the results [TOKENS, OUT_ROWS] of a threadgroup in `shared`.
template <typename Format, typename Inputs>
inline void multiply_tile(thread const Parts& m, thread const Inputs& inputs, uint count, uint2 at,
                          threadgroup float* shared, thread const Thread& t) {
  threadgroup float* const weights = shared + TOKENS * PITCH;
  Results results;
  for (uint column = 0; column < m.cols; column += DEPTH) {
    copy_inputs(inputs, at.y * TOKENS, count, column, m.cols, shared, t);
    unpack_rows<Format>(m, at.x * OUT_ROWS, column, weights, t);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    results.add(shared, weights + t.group * 2 * BLOCK * PITCH);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  results.store(shared + t.group * 2 * BLOCK);
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Which results of a tile a thread writes, one after the other: their tokens, rows and values.
struct Written {
  uint token, row;
  float value;
  bool exists;
};

inline Written written(uint i, uint2 at, uint count, uint rows, threadgroup const float* shared) {
  const uint token = at.y * TOKENS + i / OUT_ROWS, row = at.x * OUT_ROWS + i % OUT_ROWS;
  return {token, row, shared[i], token < count && row < rows};
}

// The results of a threadgroup, each at its token's row and its own column of y.
template <typename Write, typename Inputs>
inline void multiply_all(device const uchar* weights, thread const Inputs& inputs, device float* y,
                         constant Batch& batch, uint2 at, threadgroup float* shared, Thread t) {
  const Parts m = parts_of(weights, batch.matrix);
  multiply_tile<MATRIX>(m, inputs, batch.count, at, shared, t);
  for (uint i = t.index(); i < TOKENS * OUT_ROWS; i += MATMUL_THREADS) {
    const Written w = written(i, at, batch.count, m.rows, shared);
    if (w.exists) Write::write(y + ulong(w.token) * m.rows + w.row, w.value);
  }
}

// y[t, r] = W[r] . x[t]. x [count, cols]; y [count, rows].
kernel void matmul(device const uchar* weights [[buffer(0)]],
                   device const float* x [[buffer(1)]],
                   device float* y [[buffer(2)]],
                   constant Batch& batch [[buffer(3)]],
                   uint2 at [[threadgroup_position_in_grid]],
                   uint lane [[thread_index_in_simdgroup]],
                   uint group [[simdgroup_index_in_threadgroup]]) {
  threadgroup float shared[SHARED];
  const Straight inputs = {x};
  multiply_all<Set>(weights, inputs, y, batch, at, shared, {lane, group});
}

// The same, added to y.
kernel void matmul_add(device const uchar* weights [[buffer(0)]],
                       device const float* x [[buffer(1)]],
                       device float* y [[buffer(2)]],
                       constant Batch& batch [[buffer(3)]],
                       uint2 at [[threadgroup_position_in_grid]],
                       uint lane [[thread_index_in_simdgroup]],
                       uint group [[simdgroup_index_in_threadgroup]]) {
  threadgroup float shared[SHARED];
  const Straight inputs = {x};
  multiply_all<Add>(weights, inputs, y, batch, at, shared, {lane, group});
}

// y[i, r] = W[r] . x[tokens[i]]: gate and up of an expert. x [any, cols]; tokens [count]; y [count, rows].
kernel void matmul_gather(device const uchar* weights [[buffer(0)]],
                          device const float* x [[buffer(1)]],
                          device float* y [[buffer(2)]],
                          constant Batch& batch [[buffer(3)]],
                          device const uint* tokens [[buffer(4)]],
                          uint2 at [[threadgroup_position_in_grid]],
                          uint lane [[thread_index_in_simdgroup]],
                          uint group [[simdgroup_index_in_threadgroup]]) {
  threadgroup float shared[SHARED];
  const Gathered inputs = {x, tokens};
  multiply_all<Set>(weights, inputs, y, batch, at, shared, {lane, group});
}

// y[tokens[i], r] += shares[i] * (W[r] . h[i]): down of an expert. h [count, cols]; tokens (distinct), shares [count].
kernel void matmul_scatter(device const uchar* weights [[buffer(0)]],
                           device const float* h [[buffer(1)]],
                           device float* y [[buffer(2)]],
                           constant Batch& batch [[buffer(3)]],
                           device const uint* tokens [[buffer(4)]],
                           device const float* shares [[buffer(5)]],
                           uint2 at [[threadgroup_position_in_grid]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint group [[simdgroup_index_in_threadgroup]]) {
  threadgroup float shared[SHARED];
  const Parts m = parts_of(weights, batch.matrix);
  const Straight inputs = {h};
  const Thread t = {lane, group};
  multiply_tile<MATRIX>(m, inputs, batch.count, at, shared, t);
  for (uint i = t.index(); i < TOKENS * OUT_ROWS; i += MATMUL_THREADS) {
    const Written w = written(i, at, batch.count, m.rows, shared);
    if (!w.exists) continue;
    device float* const to = y + ulong(tokens[w.token]) * m.rows + w.row;
    *to = fma(shares[w.token], w.value, *to);
  }
}
