// Products with rounded activations: integers within a block of 32 columns, floats between blocks.
//
// One shape of sum, however it is computed: lane l of sixteen adds up the blocks l, l + 16, ... in ascending order, then
// reduce_add's tree; biases likewise, by group. One token takes a row at a time. For several, rows are unpacked
// once into a panel, whose lanes are rows, and the tree is climbed by the order in which lanes are visited.
#pragma once

#include "codes.h"

namespace moepack::MOEPACK_ISA {

#if defined(__AVX512F__)
constexpr int SHEETS = 2;  // sixteen rows each; with two, a token's bytes serve twice as many products
#else
constexpr int SHEETS = 1;
#endif
constexpr int64_t PANEL_ROWS = 16 * SHEETS;

constexpr int LOW_BITS = 7;  // of a rounded activation

// A tile of tokens; `sums` are those of the matrix's groups. Of one token it is a row.
struct Tile {
  const int8_t *high, *low;
  const float* scales;
  const int32_t* offsets;
  const float* sums;
};

inline Tile tile_of(const Rounded& x, int64_t token, int64_t tokens, int64_t group) {
  const int64_t blocks = x.width / BLOCK, kind = group == 64 ? 1 : group == 128 ? 2 : 0;
  const int8_t* const codes = x.codes + 2 * token * x.width;
  return {codes, codes + tokens * x.width, x.scales + token * blocks, x.offsets + token * blocks,
          x.sums + (token * 3 + kind * tokens) * blocks};
}

// The exact products of sixteen blocks of a row of `cols` columns. All weights come first, and sums take turns: no step
// waits for the one before.
template <typename Codes, bool WHOLE>
__attribute__((always_inline)) inline I16 block_products(const Codes& codes, const CodeRow& row, int64_t cols,
                                                         int64_t column, const Tile& x) {
  constexpr int CHUNKS = STRETCH / Codes::CHUNK;
  U64 w[CHUNKS][Codes::PLANES];
  I16 high[CHUNKS], low[CHUNKS];
#pragma GCC unroll 8
  for (int c = 0; c < CHUNKS; ++c) {
    const int64_t at = column + c * Codes::CHUNK, left = cols - at;
    if (WHOLE || left > 0) codes.planes(row, at, WHOLE ? Codes::CHUNK : left, w[c]);
    high[c] = low[c] = set_ints(0);
  }
#pragma GCC unroll 4
  for (int p = 0; p < Codes::PLANES; ++p)
#pragma GCC unroll 8
    for (int c = 0; c < CHUNKS; ++c) {
      const int64_t at = column + c * Codes::CHUNK;
      if (!WHOLE && at >= cols) continue;
      high[c] = add_products<Codes::MOST>(high[c], w[c][p], load_signed(x.high + at + p * BYTES));
      low[c] = add_products<Codes::MOST>(low[c], w[c][p], load_signed(x.low + at + p * BYTES));
    }
#pragma GCC unroll 8
  for (int c = 0; c < CHUNKS; ++c) high[c] = add_ints(shift_left<LOW_BITS>(high[c]), low[c]);
  const I16 products = fold_all<CHUNKS>(high);
  if constexpr (!Codes::SHIFTED) return products;
  return add_ints(products, shift_left<7>(load_ints(x.offsets + column / BLOCK)));  // 128 times the sum too much
}

// out[r] = row `row + r` . x; `room` is for a float of every block.
template <typename Codes>
__attribute__((noinline)) void dot_rows(const Matrix& m, int64_t row, int64_t rows, const Tile& x, float* room,
                                        float* out) {
  const Codes codes(m);
  for (int64_t r = row; r < row + rows; ++r) {
    const CodeRow at = Codes::row(m, r);
    const float* const factors = Codes::factors(m, r, x.scales, room);
    F16 sum = set(0.0f);
    int64_t column = 0;
    for (; column + STRETCH <= m.cols; column += STRETCH)
      sum = fma(to_floats(block_products<Codes, true>(codes, at, m.cols, column, x)), load(factors + column / BLOCK), sum);
    if (column < m.cols)
      sum = fma(to_floats(block_products<Codes, false>(codes, at, m.cols, column, x)), load(factors + column / BLOCK), sum);
    out[r - row] = Codes::finish(m, r, sum, x.sums);
  }
}

// Some rows: `bytes` is [blocks][8 steps][rows][4 columns], scales and biases are [groups][rows], or scales [rows] where a
// row has only one.
struct Panel {
  uint8_t* bytes;
  float *scales, *biases;
};

inline Panel panel_in(const Matrix& m, float* scratch) {
  const int64_t offset = -(reinterpret_cast<intptr_t>(scratch) / static_cast<intptr_t>(sizeof(float))) & 15;
  float* const bytes = scratch + offset;
  float* const scales = bytes + (m.cols + STRETCH) * PANEL_ROWS / 4;
  return {reinterpret_cast<uint8_t*>(bytes), scales, scales + (m.cols / BLOCK) * PANEL_ROWS};
}

// At which four columns of a rounded row, counted in fours, step `k` of a block lies.
template <int PLANES> inline int64_t place(int64_t block, int64_t k) {
  constexpr int64_t per = 8 / PLANES, blocks = 2 * PLANES;  // steps of a plane in a block; blocks in a chunk
  return (block / blocks * PLANES + k / per) * (BYTES / 4) + block % blocks * per + k % per;
}

// Sixteen rows from `row` on, as one sheet of a panel.
template <typename Codes> void unpack_sheet(const Matrix& m, const Codes& codes, int64_t row, uint8_t* to) {
  constexpr int PLANES = Codes::PLANES, PER = 8 / PLANES;
  for (int64_t column = 0; column < m.cols; column += Codes::CHUNK) {
    U64 planes[PLANES][16], turned[16];
    for (int64_t r = 0; r < 16; ++r) {
      U64 w[PLANES];
      codes.planes(Codes::row(m, row + r < m.rows ? row + r : m.rows - 1), column, m.cols - column, w);
      for (int p = 0; p < PLANES; ++p) planes[p][r] = w[p];
    }
    for (int p = 0; p < PLANES; ++p) {
      transpose(planes[p], turned);
      for (int i = 0; i < 16; ++i)
        store_bytes(to + ((column / BLOCK + i / PER) * 8 + p * PER + i % PER) * BYTES * SHEETS, turned[i]);
    }
  }
}

// to[g][r] = from[row + r][g]
inline void turn_parameters(const Matrix& m, const void* from, int64_t row, float* to) {
  const int64_t groups = m.cols / m.group;
  float values[GROUPS_AT_ONCE];
  for (int64_t r = 0; r < PANEL_ROWS; ++r)
    for (int64_t first = 0; first < groups; first += GROUPS_AT_ONCE) {
      const int64_t count = groups - first < GROUPS_AT_ONCE ? groups - first : GROUPS_AT_ONCE;
      widen(from, m.scalar, (row + r < m.rows ? row + r : m.rows - 1) * groups + first, count, values);
      for (int64_t g = 0; g < count; ++g) to[(first + g) * PANEL_ROWS + r] = values[g];
    }
}

template <typename Codes> void fill_panel(const Matrix& m, const Codes& codes, int64_t row, const Panel& to) {
  for (int64_t sheet = 0; sheet < SHEETS; ++sheet) unpack_sheet(m, codes, row + 16 * sheet, to.bytes + sheet * BYTES);
  if constexpr (Codes::SHIFTED) {
    for (int64_t r = 0; r < PANEL_ROWS; ++r)
      to.scales[r] = bf16_to_float(static_cast<const uint16_t*>(m.scales)[row + r < m.rows ? row + r : m.rows - 1]);
  } else {
    turn_parameters(m, m.scales, row, to.scales);
    turn_parameters(m, m.biases, row, to.biases);
  }
}

// Calls add(lane, sums) for the sixteen lanes so that reduce_add's tree comes of adding neighbours, and adds them.
template <int T, typename Add> inline void climb(F16 (&total)[T], Add&& add_lane) {
  constexpr int LANE[16] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
  F16 waiting[4][T];
  for (int i = 0; i < 16; ++i) {
    F16 sums[T];
    for (int t = 0; t < T; ++t) sums[t] = set(0.0f);
    add_lane(LANE[i], sums);
    int level = 0;
    for (; i >> level & 1; ++level)
      for (int t = 0; t < T; ++t) sums[t] = add(waiting[level][t], sums[t]);
    F16* const to = level == 4 ? total : waiting[level];
    for (int t = 0; t < T; ++t) to[t] = sums[t];
  }
}

// dots[s T + t] += a block of sheet s . the bytes of token t
template <typename Codes, int T>
__attribute__((always_inline)) inline void add_block(const uint8_t* panel, const int8_t* x, I16 (&dots)[SHEETS * T]) {
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) {
    U64 w[SHEETS];
    for (int s = 0; s < SHEETS; ++s) w[s] = load_bytes(panel + (k * SHEETS + s) * BYTES);
    const int8_t* const at = x + place<Codes::PLANES>(0, k) * 4 * T;
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      const U64 four = repeat_four(at + 4 * t);
      for (int s = 0; s < SHEETS; ++s) dots[s * T + t] = add_products<Codes::MOST>(dots[s * T + t], w[s], four);
    }
  }
}

// The products of one block of a panel with T tokens. Weights that are 128 too large add 128 times the activations'
// sum: it is taken away before the shift that multiplies by as much.
template <typename Codes, int T>
__attribute__((always_inline)) inline void panel_block(const Panel& panel, int64_t block, const Tile& x,
                                                       I16 (&dots)[SHEETS * T]) {
  static_assert(LOW_BITS == 7);
  const uint8_t* const bytes = panel.bytes + block * 8 * BYTES * SHEETS;
  const int64_t at = place<Codes::PLANES>(block, 0) * 4 * T;
  for (int i = 0; i < SHEETS * T; ++i) dots[i] = set_ints(Codes::SHIFTED ? x.offsets[block * T + i % T] : 0);
  add_block<Codes, T>(bytes, x.high + at, dots);
  for (int i = 0; i < SHEETS * T; ++i) dots[i] = shift_left<LOW_BITS>(dots[i]);
  add_block<Codes, T>(bytes, x.low + at, dots);
}

// out[s T + t] = the sixteen rows of sheet s . token t of the tile
template <typename Codes, int T>
__attribute__((noinline)) void panel_tile(const Matrix& m, const Panel& panel, const Tile& x, F16 (&out)[SHEETS * T]) {
  const int64_t blocks = m.cols / BLOCK, groups = Codes::SHIFTED ? 0 : m.cols / m.group;
  climb<SHEETS * T>(out, [&](int lane, F16(&sums)[SHEETS * T]) __attribute__((always_inline)) {
    for (int64_t block = lane; block < blocks; block += LANES) {
      I16 dots[SHEETS * T];
      const int64_t next = block + LANES < blocks ? block + LANES : lane + 1;  // nearly always
      prefetch(panel.bytes + next * 8 * BYTES * SHEETS, 8 * BYTES * SHEETS);
      panel_block<Codes, T>(panel, block, x, dots);
      const float* const scales = x.scales + block * T;
      if constexpr (Codes::SHIFTED) {
        for (int i = 0; i < SHEETS * T; ++i) sums[i] = fma(to_floats(dots[i]), set(scales[i % T]), sums[i]);
      } else {
        const float* const of_rows = panel.scales + block * BLOCK / m.group * PANEL_ROWS;
        for (int i = 0; i < SHEETS * T; ++i)
          sums[i] = fma(to_floats(dots[i]), mul(load(of_rows + i / T * 16), set(scales[i % T])), sums[i]);
      }
    }
  });
  if constexpr (Codes::SHIFTED) {
    for (int i = 0; i < SHEETS * T; ++i) out[i] = mul(load(panel.scales + i / T * 16), out[i]);
    return;
  }
  F16 more[SHEETS * T];
  climb<SHEETS * T>(more, [&](int lane, F16(&sums)[SHEETS * T]) __attribute__((always_inline)) {
    for (int64_t g = lane; g < groups; g += LANES)
      for (int i = 0; i < SHEETS * T; ++i)
        sums[i] = fma(load(panel.biases + g * PANEL_ROWS + i / T * 16), set(x.sums[g * T + i % T]), sums[i]);
  });
  for (int i = 0; i < SHEETS * T; ++i) out[i] = add(out[i], more[i]);
}

}  // namespace moepack::MOEPACK_ISA
