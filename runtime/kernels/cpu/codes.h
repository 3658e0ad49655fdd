// The weights of a matrix as bytes, chunk by chunk, for products with rounded activations. Codebooks' levels are signed
// where products take such.
//
// A chunk is 64 bytes of every plane: byte i of plane p is column PLANES * i + p of the chunk, because that is what
// shifting packed codes gives. Rounded activations are dealt out the same way, so order never matters to a sum.
#pragma once

#include "affine.h"
#include "bytes.h"
#include "kernels.h"

namespace moepack::MOEPACK_ISA {

constexpr int64_t AHEAD = 4096;  // bytes: how far ahead memory is asked for where rows are met one after the other

// Where a row of a matrix lies, and how many bytes ahead of it memory is asked for.
struct CodeRow {
  const uint8_t *codes, *grids;
  int64_t codes_ahead = AHEAD, grids_ahead = AHEAD / 4;
};

// The bytes of `count` things, PER_BYTE in each: one shift, which dividing signed numbers is not.
template <int PER_BYTE> inline int64_t bytes_of(int64_t count) {
  return static_cast<int64_t>(static_cast<uint64_t>(count) / PER_BYTE);
}

// Scales or biases of the sixteen blocks from `block` on, zero beyond the row; one value serves REPEAT blocks.
template <int REPEAT>
inline F16 spread(const void* from, Scalar scalar, int64_t row_start, int64_t groups, int64_t block) {
  const int64_t first = block / REPEAT, count = groups - first < LANES / REPEAT ? groups - first : LANES / REPEAT;
  if (scalar == Scalar::bf16) {
    const uint16_t* const halves = static_cast<const uint16_t*>(from) + row_start + first;
    if (count == LANES / REPEAT) return load_bf16_repeated<REPEAT>(halves);
    uint16_t few[32];
    copy_part(few, halves, 2 * count);
    return load_bf16_repeated<REPEAT>(few);
  }
  float values[LANES], lanes[LANES] = {};
  widen(from, scalar, row_start + first, count, values);
  for (int64_t i = 0; i < count * REPEAT; ++i) lanes[i] = values[i / REPEAT];
  return load(lanes);
}

template <int BITS> struct AffineCodes {
  static constexpr int PLANES = BITS == 2 ? 4 : BITS == 4 ? 2 : 1, MOST = (1 << BITS) - 1;
  static constexpr int64_t CHUNK = BYTES * PLANES;  // columns
  static constexpr bool SHIFTED = false;            // whether bytes are 128 above the weights that they stand for
  static constexpr bool ROW_SCALED = false;         // whether a row has one scale and no bias, not those of its groups

  static inline CodeRow row(const Matrix& m, int64_t row) { return {m.data + row * m.row_bytes, nullptr}; }

  // One of sixteen that are met together, column by column.
  static inline CodeRow of_sheet(const Matrix& m, int64_t row) {
    return {m.data + row * m.row_bytes, nullptr, 16 * m.row_bytes, 0};
  }

  // The chunk at `column` of a row, of which `left` columns exist; bytes past them are arbitrary.
  inline void planes(const CodeRow& row, int64_t column, int64_t left, U64 (&w)[PLANES]) const {
    const uint8_t* const from = row.codes + bytes_of<8>(column * BITS);
    __builtin_prefetch(from + row.codes_ahead, 0, 2);
    if constexpr (BITS == 3 || BITS == 6) {
      if (BITS == 6) __builtin_prefetch(from + row.codes_ahead + 32, 0, 2);
      if (left >= CHUNK) return void(w[0] = unpack<BITS>(from));
      uint8_t codes[BYTES];
      copy_part(codes, from, left * BITS / 8);
      w[0] = unpack<BITS>(codes);
    } else {
      const U64 chunk = load_bytes_up_to(from, left * BITS / 8);
      w[0] = lowest<BITS>(chunk);
      if constexpr (PLANES > 1) w[1] = lowest<BITS>(shifted<BITS>(chunk));
      if constexpr (PLANES > 2) w[2] = lowest<BITS>(shifted<2 * BITS>(chunk));
      if constexpr (PLANES > 2) w[3] = lowest<BITS>(shifted<3 * BITS>(chunk));
    }
  }

  explicit AffineCodes(const Matrix&) {}

  // The scales of a row's blocks times those of each of T rows of activations, in `room`.
  template <int T>
  static inline void factors(const Matrix& m, int64_t row, const float* const (&scales)[T], float* room,
                             const float* (&to)[T]) {
    for (int t = 0; t < T; ++t) to[t] = room + t * stretches_of(m.cols) * LANES;
    if (m.group == 32) multiply<1>(m, row, scales, room);
    else if (m.group == 64) multiply<2>(m, row, scales, room);
    else multiply<4>(m, row, scales, room);
  }

  // With what the biases add: of every group, its bias times the sum of its activations.
  template <int T>
  static inline void finish(const Matrix& m, int64_t row, const F16 (&sums)[T], const float* const (&group_sums)[T],
                            float (&to)[T]) {
    const int64_t groups = m.cols / m.group;
    F16 more[T];
    for (int t = 0; t < T; ++t) more[t] = set(0.0f);
    for (int64_t g = 0; g < groups; g += LANES) {
      const F16 biases = spread<1>(m.biases, m.scalar, row * groups, groups, g);
      for (int t = 0; t < T; ++t) more[t] = fma(biases, load(group_sums[t] + g), more[t]);
    }
    for (int t = 0; t < T; ++t) to[t] = reduce_add(sums[t]) + reduce_add(more[t]);
  }

 private:
  template <int REPEAT, int T>
  static inline void multiply(const Matrix& m, int64_t row, const float* const (&scales)[T], float* to) {
    const int64_t blocks = m.cols / BLOCK, groups = blocks / REPEAT, each = stretches_of(m.cols) * LANES;
    for (int64_t b = 0; b < blocks; b += LANES) {
      const F16 own = spread<REPEAT>(m.scales, m.scalar, row * groups, groups, b);
      for (int t = 0; t < T; ++t) store(to + t * each + b, mul(own, load(scales[t] + b)));
    }
  }
};

template <int BITS, int GROUP> struct BookCodes {
  static constexpr int PLANES = BITS == 2 ? 4 : 1, MOST = SIGNED_LEVELS ? SIGNED : 255;
  static constexpr int64_t CHUNK = BYTES * PLANES;
  static constexpr bool SHIFTED = !SIGNED_LEVELS, ROW_SCALED = true;

  Books<BITS> books;
  explicit BookCodes(const Matrix& m) : books(m.books) {}

  static inline CodeRow row(const Matrix& m, int64_t row) {
    return {m.data + row * m.row_bytes, m.grids + row * bytes_of<2 * GROUP>(m.cols)};
  }

  static inline CodeRow of_sheet(const Matrix& m, int64_t row) {
    const int64_t grids = bytes_of<2 * GROUP>(m.cols);
    return {m.data + row * m.row_bytes, m.grids + row * grids, 16 * m.row_bytes, 16 * grids};
  }

  inline void planes(const CodeRow& row, int64_t column, int64_t left, U64 (&w)[PLANES]) const {
    const uint8_t* from = row.codes + bytes_of<8>(column * BITS);
    const uint8_t* grids = row.grids + bytes_of<2 * GROUP>(column);
    uint8_t codes[BYTES], few[BYTES];
    __builtin_prefetch(from + row.codes_ahead, 0, 2);
    if (column % (BYTES * 2 * GROUP) == 0) __builtin_prefetch(grids + row.grids_ahead, 0, 2);
    if (left < CHUNK) {
      copy_part(codes, from, left * BITS / 8);
      copy_part(few, grids, left / GROUP / 2);
      from = codes, grids = few;
    }
    const U64 named = books_of<BITS, GROUP / PLANES>(grids);
    if constexpr (BITS == 3) {
      w[0] = books.levels(unpack<3>(from), named);
    } else {
      const U64 chunk = load_bytes(from);
      w[0] = books.levels(chunk, named);
      w[1] = books.levels(shifted<2>(chunk), named);
      w[2] = books.levels(shifted<4>(chunk), named);
      w[3] = books.levels(shifted<6>(chunk), named);
    }
  }

  template <int T>
  static inline void factors(const Matrix&, int64_t, const float* const (&scales)[T], float*, const float* (&to)[T]) {
    for (int t = 0; t < T; ++t) to[t] = scales[t];
  }

  template <int T>
  static inline void finish(const Matrix& m, int64_t row, const F16 (&sums)[T], const float* const (&)[T],
                            float (&to)[T]) {
    const float scale = bf16_to_float(static_cast<const uint16_t*>(m.scales)[row]);
    for (int t = 0; t < T; ++t) to[t] = scale * reduce_add(sums[t]);
  }
};

}  // namespace moepack::MOEPACK_ISA
