// Products of several rounded rows: rows of the matrix are unpacked once into a panel, whose lanes are rows.
//
// A product is the sum that rounded.h says: lanes are visited one after the other, in the order in which their blocks
// lie in panels and packets, and the tree is climbed over whole registers.
#pragma once

#include "rounded.h"

namespace moepack::MOEPACK_ISA {

#if defined(__AVX512F__)
constexpr int SHEETS = 2;  // sixteen rows each; with two, a token's bytes serve twice as many products
#else
constexpr int SHEETS = 1;
#endif
constexpr int64_t PANEL_ROWS = 16 * SHEETS;
constexpr int64_t PANEL_BLOCK = PANEL_ROWS * BLOCK;  // bytes

// Some rows. Blocks lie as packet_of says: `bytes` is [blocks][8 steps][rows][4 columns], and scales are
// [blocks][rows], or [rows] where a row has only one. Biases are [groups][rows].
struct Panel {
  uint8_t* bytes;
  float *scales, *biases;
};

// The rounded rows of some tokens, in lanes.
template <int T> struct Tokens {
  const uint8_t* rows[T];
};

// The sums of T tokens and all sheets: of sheet s and token t at s T + t.
template <int T> struct Sums {
  F16 of[SHEETS * T];
};

inline int64_t panel_floats(const Matrix& m) {
  return stretches_of(m.cols) * 16 * (PANEL_BLOCK / 4 + 2 * PANEL_ROWS) + LANES;
}

inline Panel panel_in(const Matrix& m, float* scratch) {
  const int64_t offset = -(reinterpret_cast<intptr_t>(scratch) / static_cast<intptr_t>(sizeof(float))) & 15;
  const int64_t blocks = stretches_of(m.cols) * 16;
  float *const bytes = scratch + offset, *const scales = bytes + blocks * PANEL_BLOCK / 4;
  return {reinterpret_cast<uint8_t*>(bytes), scales, scales + blocks * PANEL_ROWS};
}

// The row itself; the last one in place of rows that the matrix does not have.
inline int64_t present(const Matrix& m, int64_t row) { return row < m.rows ? row : m.rows - 1; }

// Sixteen rows from `row` on, as one sheet of a panel.
template <typename Codes> void unpack_sheet(const Matrix& m, const Codes& codes, int64_t row, uint8_t* to) {
  constexpr int PLANES = Codes::PLANES, PER = 8 / PLANES, BLOCKS = 2 * PLANES;  // PER: steps of a plane in a block
  const int64_t stretches = stretches_of(m.cols);
  for (int64_t column = 0; column < m.cols; column += Codes::CHUNK) {
    U64 planes[PLANES][16], turned[16];
    uint8_t* blocks[BLOCKS];
    for (int64_t b = 0; b < BLOCKS; ++b) blocks[b] = to + packet_of(column / BLOCK + b, stretches) * PANEL_BLOCK;
    for (int64_t r = 0; r < 16; ++r) {
      U64 w[PLANES];
      codes.planes(Codes::of_sheet(m, present(m, row + r)), column, m.cols - column, w);
      for (int p = 0; p < PLANES; ++p) planes[p][r] = w[p];
    }
    for (int p = 0; p < PLANES; ++p) {
      transpose(planes[p], turned);
      for (int i = 0; i < 16; ++i) store_bytes(blocks[i / PER] + (p * PER + i % PER) * BYTES * SHEETS, turned[i]);
    }
  }
}

// Calls use(group, values) with a parameter of sixteen rows from `row` on, for every group.
template <typename Use> void turn_parameters(const Matrix& m, const void* from, int64_t row, Use&& use) {
  const int64_t groups = m.cols / m.group;
  for (int64_t first = 0; first < groups; first += LANES) {
    alignas(64) float values[16][LANES];
    U64 rows[16], turned[16];
    for (int64_t r = 0; r < 16; ++r) {
      store(values[r], spread<1>(from, m.scalar, present(m, row + r) * groups, groups, first));
      rows[r] = load_bytes(reinterpret_cast<const uint8_t*>(values[r]));
    }
    transpose(rows, turned);
    for (int64_t g = first; g < first + LANES && g < groups; ++g) use(g, turned[g - first]);
  }
}

inline void store_floats(float* to, U64 values) { store_bytes(reinterpret_cast<uint8_t*>(to), values); }

// The scales and biases of a sheet.
inline void fill_parameters(const Matrix& m, int64_t row, float* scales, float* biases) {
  const int64_t each = m.group / BLOCK, stretches = stretches_of(m.cols);
  turn_parameters(m, m.scales, row, [&](int64_t group, U64 values) {
    for (int64_t block = group * each; block < (group + 1) * each; ++block)
      store_floats(scales + packet_of(block, stretches) * PANEL_ROWS, values);
  });
  turn_parameters(m, m.biases, row,
                  [&](int64_t group, U64 values) { store_floats(biases + group * PANEL_ROWS, values); });
}

template <typename Codes> void fill_panel(const Matrix& m, const Codes& codes, int64_t row, const Panel& to) {
  for (int64_t sheet = 0; sheet < SHEETS; ++sheet) {
    unpack_sheet(m, codes, row + 16 * sheet, to.bytes + sheet * BYTES);
    if constexpr (!Codes::ROW_SCALED)
      fill_parameters(m, row + 16 * sheet, to.scales + 16 * sheet, to.biases + 16 * sheet);
  }
  if constexpr (Codes::ROW_SCALED)
    for (int64_t r = 0; r < PANEL_ROWS; ++r)
      to.scales[r] = bf16_to_float(static_cast<const uint16_t*>(m.scales)[present(m, row + r)]);
}

// Calls leaf(lane, sums) for the lanes lane, lane + STEP, ... and adds them up in reduce_add's order.
template <int STEP, int T, typename Leaf>
__attribute__((always_inline)) inline void climb(int64_t lane, Leaf&& leaf, Sums<T>& sums) {
  if constexpr (STEP == LANES) {
    leaf(lane, sums);
  } else {
    Sums<T> others;
    climb<2 * STEP>(lane, leaf, sums);
    climb<2 * STEP>(lane + STEP, leaf, others);
    for (int i = 0; i < SHEETS * T; ++i) sums.of[i] = add(sums.of[i], others.of[i]);
  }
}

template <typename Value> inline Value value_at(const uint8_t* from) {
  Value value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// dots += a block of a panel . the codes at `at` of each token
template <typename Codes, int T>
__attribute__((always_inline)) inline void add_block(const uint8_t* panel, const Tokens<T>& x, int64_t at,
                                                     I16 (&dots)[SHEETS * T]) {
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) {
    U64 w[SHEETS];
    for (int s = 0; s < SHEETS; ++s) w[s] = load_bytes(panel + (k * SHEETS + s) * BYTES);
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      const U64 four = repeat_four(reinterpret_cast<const int8_t*>(x.rows[t] + at + 4 * k));
      for (int s = 0; s < SHEETS; ++s) dots[s * T + t] = add_products<Codes::MOST>(dots[s * T + t], w[s], four);
    }
  }
}

// The products of one block with the packets at `at`. Weights that are 128 too large add 128 times the activations'
// sum: it is taken away before the shift that multiplies by as much.
template <typename Codes, int T>
__attribute__((always_inline)) inline void panel_block(const uint8_t* panel, const Tokens<T>& x, int64_t at,
                                                       I16 (&dots)[SHEETS * T]) {
  static_assert(LOW_BITS == 7);
  for (int i = 0; i < SHEETS * T; ++i) {
    const uint8_t* const offset = x.rows[i % T] + at + offsetof(Packet, offset);
    dots[i] = set_ints(Codes::SHIFTED ? value_at<int32_t>(offset) : 0);
  }
  add_block<Codes, T>(panel, x, at + static_cast<int64_t>(offsetof(Packet, high)), dots);
  for (int i = 0; i < SHEETS * T; ++i) dots[i] = shift_left<LOW_BITS>(dots[i]);
  add_block<Codes, T>(forgotten(panel), x, at + static_cast<int64_t>(offsetof(Packet, low)), dots);
}

// The sums of one lane of `count` blocks, whose first is block `first` of the panel.
template <typename Codes, int T>
__attribute__((noinline)) void add_lane(const Panel& panel, Tokens<T> x, int64_t first, int64_t count, Sums<T>& to) {
  const uint8_t* bytes = panel.bytes + first * PANEL_BLOCK;
  const float* scales = panel.scales + first * PANEL_ROWS;
  int64_t at = first * static_cast<int64_t>(sizeof(Packet));
  F16 sums[SHEETS * T];
#pragma GCC unroll 12
  for (int i = 0; i < SHEETS * T; ++i) sums[i] = set(0.0f);
  for (; count > 0; --count, bytes += PANEL_BLOCK, scales += PANEL_ROWS, at += static_cast<int64_t>(sizeof(Packet))) {
    I16 dots[SHEETS * T];
    panel_block<Codes, T>(bytes, x, at, dots);
    for (int i = 0; i < SHEETS * T; ++i) {
      const F16 scale = set(value_at<float>(x.rows[i % T] + at + offsetof(Packet, scale)));
      const F16 factor = Codes::ROW_SCALED ? scale : mul(load(scales + i / T * 16), scale);
      sums[i] = fma(to_floats(dots[i]), factor, sums[i]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < SHEETS * T; ++i) to.of[i] = sums[i];
}

// What the biases add to T tokens: of every group, its bias times the sum of its activations.
template <int T>
__attribute__((always_inline)) inline void add_biases(const Matrix& m, const Panel& panel, const uint8_t* const* rows,
                                                      Sums<T>& sums) {
  const int64_t groups = m.cols / m.group, at = sums_in_row(m);
  climb<1>(0, [&](int64_t lane, Sums<T>& to) __attribute__((always_inline)) {
    for (int i = 0; i < SHEETS * T; ++i) to.of[i] = set(0.0f);
    for (int64_t g = lane; g < groups; g += LANES)
      for (int i = 0; i < SHEETS * T; ++i)
        to.of[i] = fma(load(panel.biases + g * PANEL_ROWS + i / T * 16), set(value_at<float>(rows[i % T] + at + 4 * g)),
                       to.of[i]);
  }, sums);
}

// The products of a panel with T tokens.
template <typename Codes, int T>
__attribute__((noinline)) void panel_tile(const Matrix& m, const Panel& panel, const Tokens<T>& x, Sums<T>& out) {
  const int64_t blocks = m.cols / BLOCK, stretches = stretches_of(m.cols);
  climb<1>(0, [&](int64_t lane, Sums<T>& sums) __attribute__((always_inline)) {
    add_lane<Codes>(panel, x, packet_of(lane, stretches), (blocks - lane + LANES - 1) / LANES, sums);
  }, out);
  if constexpr (Codes::ROW_SCALED) {
    for (int i = 0; i < SHEETS * T; ++i) out.of[i] = mul(load(panel.scales + i / T * 16), out.of[i]);
    return;
  }
  constexpr int FEW = T % 2 == 0 ? 2 : 1;  // tokens whose tree fits the registers
  for (int t = 0; t < T; t += FEW) {
    Sums<FEW> more;
    add_biases(m, panel, x.rows + t, more);
    for (int i = 0; i < SHEETS * FEW; ++i) {
      F16& to = out.of[i / FEW * T + t + i % FEW];
      to = add(to, more.of[i]);
    }
  }
}

}  // namespace moepack::MOEPACK_ISA
