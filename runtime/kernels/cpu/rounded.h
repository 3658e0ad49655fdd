// Products of one row of rounded activations: integers within a block of 32 columns, floats between blocks.
//
// One shape of sum, here and in panel.h: lane l of sixteen adds up the blocks l, l + 16, ... in ascending order, then
// reduce_add's tree; biases likewise, by group.
#pragma once

#include "codes.h"

namespace moepack::MOEPACK_ISA {

constexpr int LOW_BITS = 7;  // of a rounded activation

// A row in chunks; `sums` are those of the matrix's groups.
struct RoundedRow {
  const int8_t *high, *low;
  const float* scales;
  const int32_t* offsets;
  const float* sums;
};

// Where the sums of a matrix's groups lie in a rounded row.
inline int64_t sums_in_row(const Matrix& m) {
  const int64_t blocks = stretches_of(m.cols) * 16, kind = m.group == 64 ? 1 : m.group == 128 ? 2 : 0;
  return blocks * static_cast<int64_t>(sizeof(Packet) + static_cast<size_t>(kind) * sizeof(float));
}

inline RoundedRow row_of(const Matrix& m, const uint8_t* bytes) {
  const int64_t blocks = stretches_of(m.cols) * 16;
  const int8_t *const high = reinterpret_cast<const int8_t*>(bytes), *const low = high + blocks * BLOCK;
  const float* const scales = reinterpret_cast<const float*>(low + blocks * BLOCK);
  return {high, low, scales, reinterpret_cast<const int32_t*>(scales + blocks),
          reinterpret_cast<const float*>(bytes + sums_in_row(m))};
}

// The exact products of sixteen blocks.
template <typename Codes, bool WHOLE>
__attribute__((always_inline)) inline I16 block_products(const Matrix& m, const Codes& codes, int64_t row, int64_t column, const RoundedRow& x) {
  constexpr int CHUNKS = STRETCH / Codes::CHUNK;
  I16 sums[CHUNKS];
#pragma GCC unroll 8
  for (int c = 0; c < CHUNKS; ++c) {
    const int64_t at = column + c * Codes::CHUNK, left = m.cols - at;
    sums[c] = set_ints(0);
    if (!WHOLE && left <= 0) continue;
    U64 w[Codes::PLANES];
    codes.planes(m, row, at, WHOLE ? Codes::CHUNK : left, w);
#pragma GCC unroll 4
    for (int p = 0; p < Codes::PLANES; ++p)
      sums[c] = add_products<Codes::MOST>(sums[c], w[p], load_signed(x.high + at + p * BYTES));
    sums[c] = shift_left<LOW_BITS>(sums[c]);
#pragma GCC unroll 4
    for (int p = 0; p < Codes::PLANES; ++p)
      sums[c] = add_products<Codes::MOST>(sums[c], w[p], load_signed(x.low + at + p * BYTES));
  }
  const I16 products = fold_all<CHUNKS>(sums);
  if constexpr (!Codes::SHIFTED) return products;
  return add_ints(products, shift_left<7>(load_ints(x.offsets + column / BLOCK)));  // 128 times the sum too much
}

// out[r] = row `row + r` . x; `room` is for a float of every block.
template <typename Codes>
__attribute__((noinline)) void dot_rows(const Matrix& m, int64_t row, int64_t rows, const RoundedRow& x, float* room,
                                        float* out) {
  const Codes codes(m);
  for (int64_t r = row; r < row + rows; ++r) {
    const float* const factors = Codes::factors(m, r, x.scales, room);
    F16 sum = set(0.0f);
    int64_t column = 0;
    for (; column + STRETCH <= m.cols; column += STRETCH)
      sum = fma(to_floats(block_products<Codes, true>(m, codes, r, column, x)), load(factors + column / BLOCK), sum);
    if (column < m.cols)
      sum = fma(to_floats(block_products<Codes, false>(m, codes, r, column, x)), load(factors + column / BLOCK), sum);
    out[r - row] = Codes::finish(m, r, sum, x.sums);
  }
}

}  // namespace moepack::MOEPACK_ISA
