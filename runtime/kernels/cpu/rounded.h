// Products of a few rows of rounded activations: integers within a block of 32 columns, floats between blocks.
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

// The exact products of sixteen blocks of a row of `cols` columns with T rows of activations. All weights come first,
// unpacked once for all, and sums take turns: no step waits for the one before.
template <typename Codes, bool WHOLE, int T>
__attribute__((always_inline)) inline void block_products(const Codes& codes, const CodeRow& row, int64_t cols,
                                                          int64_t column, const RoundedRow (&x)[T], I16 (&to)[T]) {
  constexpr int CHUNKS = STRETCH / Codes::CHUNK;
  U64 w[CHUNKS][Codes::PLANES] = {};
#pragma GCC unroll 8
  for (int c = 0; c < CHUNKS; ++c) {
    const int64_t at = column + c * Codes::CHUNK, left = cols - at;
    if (WHOLE || left > 0) codes.planes(row, at, WHOLE ? Codes::CHUNK : left, w[c]);
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    I16 high[CHUNKS], low[CHUNKS];
    for (int c = 0; c < CHUNKS; ++c) high[c] = low[c] = set_ints(0);
#pragma GCC unroll 4
    for (int p = 0; p < Codes::PLANES; ++p)
#pragma GCC unroll 8
      for (int c = 0; c < CHUNKS; ++c) {
        const int64_t at = column + c * Codes::CHUNK;
        if (!WHOLE && at >= cols) continue;
        high[c] = add_products<Codes::MOST>(high[c], w[c][p], load_signed(x[t].high + at + p * BYTES));
        low[c] = add_products<Codes::MOST>(low[c], w[c][p], load_signed(x[t].low + at + p * BYTES));
      }
#pragma GCC unroll 8
    for (int c = 0; c < CHUNKS; ++c) high[c] = add_ints(shift_left<LOW_BITS>(high[c]), low[c]);
    to[t] = fold_all<CHUNKS>(high);
    if constexpr (Codes::SHIFTED)  // 128 times the sum too much
      to[t] = add_ints(to[t], shift_left<7>(load_ints(x[t].offsets + column / BLOCK)));
  }
}

// out[t][r] = row `row + r` . x[t]; `room` is for T floats of every block.
template <typename Codes, int T, int R>
__attribute__((noinline)) void dot_rows(const Matrix& m, int64_t row, int64_t rows, const RoundedRow (&x)[T],
                                        float* room, float (*out)[R]) {
  const Codes codes(m);
  const float *scales[T], *group_sums[T], *factors[T];
  for (int t = 0; t < T; ++t) scales[t] = x[t].scales, group_sums[t] = x[t].sums;
  for (int64_t r = row; r < row + rows; ++r) {
    const CodeRow at = Codes::row(m, r);
    Codes::factors(m, r, scales, room, factors);
    F16 sums[T];
    for (int t = 0; t < T; ++t) sums[t] = set(0.0f);
    int64_t column = 0;
    const auto add_stretch = [&](const I16(&products)[T]) __attribute__((always_inline)) {
      for (int t = 0; t < T; ++t)
        sums[t] = fma(to_floats(products[t]), load(factors[t] + column / BLOCK), sums[t]);
    };
    I16 products[T];
    for (; column + STRETCH <= m.cols; column += STRETCH) {
      block_products<Codes, true>(codes, at, m.cols, column, x, products);
      add_stretch(products);
    }
    if (column < m.cols) {
      block_products<Codes, false>(codes, at, m.cols, column, x, products);
      add_stretch(products);
    }
    float dots[T];
    Codes::finish(m, r, sums, group_sums, dots);
    for (int t = 0; t < T; ++t) out[t][r - row] = dots[t];
  }
}

}  // namespace moepack::MOEPACK_ISA
