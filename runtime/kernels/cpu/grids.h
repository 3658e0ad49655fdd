// Rows of a matrix in a grid format: each group of columns names a grid of 2^BITS levels, each code one level of it.
//
// A weight is level * scale, with one scale per row. A dot product is the sum of level * x, in the lanes and the order
// of every other dot product, times the row's scale: that is applied once, after the reduction.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace moepack::MOEPACK_ISA {

// Each byte of m.grids names PER_BYTE grids, one for every GROUP columns; m.levels holds them for each of 256 bytes.
template <int BITS, int PER_BYTE, int GROUP> struct Grids {
  static constexpr int64_t COLUMNS = PER_BYTE * GROUP, SIZE = 1 << BITS;  // of a byte; of a grid
  static constexpr int64_t STEP = 32;  // rows are whole steps
  static constexpr int64_t BYTES_AT_ONCE = 64, FETCHED = 128 / COLUMNS;   // FETCHED: bytes between two prefetches

  static inline float scale(const Matrix& m, int64_t row) {
    return bf16_to_float(static_cast<const uint16_t*>(m.scales)[row]);
  }

  // Calls use(column, 16, levels) for every sixteen columns, ascending; w[r] holds row `row + r`'s levels.
  template <int R, typename Use> static inline void walk(const Matrix& m, int64_t row, Use&& use) {
    const int64_t width = m.cols / COLUMNS;
    const uint8_t* const grids = m.grids + row * width;
    const uint8_t* const codes = m.data + row * m.row_bytes;
    uint16_t starts[R][BYTES_AT_ONCE];
    for (int64_t first = 0; first < width; first += BYTES_AT_ONCE) {
      const int64_t count = width - first < BYTES_AT_ONCE ? width - first : BYTES_AT_ONCE;
      for (int r = 0; r < R; ++r) find(grids + r * width + first, count, starts[r]);
      for (int64_t i = 0; i < count; i += STEP / COLUMNS) {
        const int64_t begin = (first + i) * COLUMNS;
        if (R > ROWS_OF_TOKENS && i % FETCHED == 0) {
          prefetch(codes + R * (m.row_bytes + begin * BITS / 8), R * FETCHED * COLUMNS * BITS / 8);
          prefetch(grids + R * (width + first + i), R * FETCHED);
        }
        for (int64_t column = 0; column < STEP; column += LANES) {
          F16 w[R];
          for (int r = 0; r < R; ++r)
            w[r] = sixteen(codes + r * m.row_bytes + (begin + column) * BITS / 8,
                           m.levels + starts[r][i + column / COLUMNS] + column % COLUMNS / GROUP * SIZE);
          use(begin + column, LANES, w);
        }
      }
    }
  }

 private:
  // Where in m.levels the grids of each byte begin.
  static inline void find(const uint8_t* bytes, int64_t count, uint16_t* starts) {
    for (int64_t i = 0; i < count; ++i) starts[i] = static_cast<uint16_t>(bytes[i] * (PER_BYTE * SIZE));
  }

  static inline F16 sixteen(const uint8_t* codes, const float* grids) {
    if constexpr (GROUP == 8) return levels_of_two<BITS>(codes, grids);
    return levels<BITS>(codes, grids);
  }
};

}  // namespace moepack::MOEPACK_ISA
