// Rows of a bf16, f16 or f32 matrix as float32 weights; any number of columns.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace moepack::MOEPACK_ISA {

template <Kind KIND> struct Float {
  static constexpr int64_t SIZE = KIND == Kind::f32 ? 4 : 2;

  static constexpr float scale(const Matrix&, int64_t) { return 1.0f; }

  static inline F16 weights(const uint8_t* from) {
    if constexpr (KIND == Kind::f32) return load(reinterpret_cast<const float*>(from));
    if constexpr (KIND == Kind::bf16) return load_bf16(reinterpret_cast<const uint16_t*>(from));
    if constexpr (KIND == Kind::f16) return load_f16(reinterpret_cast<const uint16_t*>(from));
  }

  // Calls use(column, left, w) for every sixteen columns, ascending; only the last call may have left < 16, the number
  // of columns that exist, and then w is zero past them.
  template <int R, typename Use> static inline void walk(const Matrix& m, int64_t row, Use&& use) {
    const uint8_t* const base = m.data + row * m.row_bytes;
    const int64_t whole = m.cols / LANES * LANES;
    F16 w[R];
    for (int64_t column = 0; column < whole; column += LANES) {
      for (int r = 0; r < R; ++r) w[r] = weights(base + r * m.row_bytes + column * SIZE);
      use(column, LANES, w);
    }
    if (whole == m.cols) return;
    for (int r = 0; r < R; ++r) {
      alignas(64) uint8_t rest[LANES * SIZE] = {};
      std::memcpy(rest, base + r * m.row_bytes + whole * SIZE, static_cast<size_t>((m.cols - whole) * SIZE));
      w[r] = weights(rest);
    }
    use(whole, m.cols - whole, w);
  }
};

}  // namespace moepack::MOEPACK_ISA
