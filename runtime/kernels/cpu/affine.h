// Rows of an affine matrix as float32 weights, group by group: w = code * scale + bias (MLX's affine quantization).
// The weights exist only in registers; they equal the dequantised matrix bit for bit on every instruction set.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace moepack::MOEPACK_ISA {

constexpr int64_t GROUPS_AT_ONCE = 32;

// to[i] = from[first + i] for stored scales or biases of any scalar type.
inline void widen(const void* from, Scalar scalar, int64_t first, int64_t count, float* to) {
  const uint16_t* halves = static_cast<const uint16_t*>(from) + first;
  if (scalar == Scalar::f32) {
    std::memcpy(to, static_cast<const float*>(from) + first, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    store(to + i, scalar == Scalar::bf16 ? load_bf16(halves + i) : load_f16(halves + i));
  }
  if (i == count) return;
  uint16_t rest[32];
  copy_part(rest, halves + i, 2 * (count - i));
  store_part(to + i, scalar == Scalar::bf16 ? load_bf16(rest) : load_f16(rest), count - i);
}

// Calls use(column, 16, w) for every sixteen columns, ascending; w[r] holds row `row + r`'s weights.
template <int BITS> struct Affine {
  static constexpr float scale(const Matrix&, int64_t) { return 1.0f; }

  template <int R, typename Use> static inline void walk(const Matrix& m, int64_t row, Use&& use) {
    const int64_t groups = m.cols / m.group, size = m.scalar == Scalar::f32 ? 4 : 2;
    float scales[R * GROUPS_AT_ONCE], biases[R * GROUPS_AT_ONCE];  // [R][count]
    for (int64_t first = 0; first < groups; first += GROUPS_AT_ONCE) {
      const int64_t count = groups - first < GROUPS_AT_ONCE ? groups - first : GROUPS_AT_ONCE;
      const auto fetch = [&](int64_t at, int64_t many, float* to, float* to_biases) {
        widen(m.scales, m.scalar, at, many, to);
        widen(m.biases, m.scalar, at, many, to_biases);
      };
      if (count == groups) fetch(row * groups, R * count, scales, biases);  // the rows' parameters follow each other
      else
        for (int r = 0; r < R; ++r) fetch((row + r) * groups + first, count, scales + r * count, biases + r * count);
      if constexpr (R > ROWS_OF_TOKENS) {
        const int64_t next = ((row + R) * groups + R * first) * size, bytes = R * count * size;
        prefetch(static_cast<const uint8_t*>(m.scales) + next, bytes);
        prefetch(static_cast<const uint8_t*>(m.biases) + next, bytes);
      }
      for (int64_t g = 0; g < count; ++g) {
        Group<BITS> group[R];
        for (int r = 0; r < R; ++r) group[r].prepare(scales[r * count + g], biases[r * count + g]);
        const int64_t begin = (first + g) * m.group, end = begin + m.group;
        for (int64_t i = 0; R > ROWS_OF_TOKENS && i < R * m.group * BITS / 8; i += 64)
          __builtin_prefetch(m.data + (row + R) * m.row_bytes + begin * BITS / 8 * R + i);
        for (int64_t column = begin; column < end; column += LANES) {
          F16 w[R];
          for (int r = 0; r < R; ++r) w[r] = group[r].weights(m.data + (row + r) * m.row_bytes + column * BITS / 8);
          use(column, LANES, w);
        }
      }
    }
  }
};

}  // namespace moepack::MOEPACK_ISA
