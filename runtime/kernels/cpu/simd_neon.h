// Sixteen lanes as four NEON registers (arm64).
#pragma once

#include <arm_neon.h>

namespace moepack::MOEPACK_ISA {

struct F16 {
  float32x4_t v[4];
};

inline F16 load(const float* from) {
  return {{vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}};
}
inline void store(float* to, F16 a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, a.v[i]);
}
inline F16 set(float x) {
  const float32x4_t q = vdupq_n_f32(x);
  return {{q, q, q, q}};
}

template <typename Op> inline F16 each(F16 a, F16 b, Op op) {
  return {{op(a.v[0], b.v[0]), op(a.v[1], b.v[1]), op(a.v[2], b.v[2]), op(a.v[3], b.v[3])}};
}
inline F16 add(F16 a, F16 b) {
  return each(a, b, [](float32x4_t x, float32x4_t y) { return vaddq_f32(x, y); });
}
inline F16 sub(F16 a, F16 b) {
  return each(a, b, [](float32x4_t x, float32x4_t y) { return vsubq_f32(x, y); });
}
inline F16 mul(F16 a, F16 b) {
  return each(a, b, [](float32x4_t x, float32x4_t y) { return vmulq_f32(x, y); });
}
inline F16 div(F16 a, F16 b) {
  return each(a, b, [](float32x4_t x, float32x4_t y) { return vdivq_f32(x, y); });
}
inline F16 max(F16 a, F16 b) {
  return each(a, b, [](float32x4_t x, float32x4_t y) { return vmaxq_f32(x, y); });
}
inline F16 min(F16 a, F16 b) {
  return each(a, b, [](float32x4_t x, float32x4_t y) { return vminq_f32(x, y); });
}
inline F16 fma(F16 a, F16 b, F16 c) {
  for (int i = 0; i < 4; ++i) c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return c;
}

inline float reduce_add(F16 a) {
  const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

// p times two to the integer held in the low mantissa bits of `shifted`.
inline F16 add_exponent(F16 p, F16 shifted) {
  return each(p, shifted, [](float32x4_t x, float32x4_t n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(vreinterpretq_s32_f32(n), 23)));
  });
}

inline F16 load_bf16(const uint16_t* from) {
  F16 r;
  for (int i = 0; i < 4; ++i) r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from + 4 * i), 16));
  return r;
}
// 16 / REPEAT values, each in REPEAT lanes.
template <int REPEAT> inline F16 load_bf16_repeated(const uint16_t* from) {
  if constexpr (REPEAT == 1) return load_bf16(from);
  uint16_t halves[16];
  for (int i = 0; i < 16; ++i) halves[i] = from[i / REPEAT];
  return load_bf16(halves);
}
inline F16 load_f16(const uint16_t* from) {
  F16 r;
  for (int i = 0; i < 4; ++i) r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i)));
  return r;
}

// Four codes from the bits of `chunk`, the first at bit 0.
template <int BITS> inline uint32x4_t four_codes(uint32_t chunk) {
  const int32_t down[4] = {0, -BITS, -2 * BITS, -3 * BITS};
  return vandq_u32(vshlq_u32(vdupq_n_u32(chunk), vld1q_s32(down)), vdupq_n_u32((1u << BITS) - 1));
}

// One group's weights, sixteen at a time: code * scale + bias, rounded after the product and after the sum.
template <int BITS> struct Group {
  float32x4_t scale, bias;
  void prepare(float s, float b) { scale = vdupq_n_f32(s), bias = vdupq_n_f32(b); }
  F16 weights(const uint8_t* codes) const {
    F16 r;
    for (int half = 0; half < 2; ++half) {
      const uint64_t chunk = load_chunk<BITS>(codes + half * BITS);
      for (int i = 0; i < 2; ++i) {
        const uint32x4_t four = four_codes<BITS>(static_cast<uint32_t>(chunk >> (4 * BITS * i)));
        r.v[2 * half + i] = vaddq_f32(vmulq_f32(vcvtq_f32_u32(four), scale), bias);
      }
    }
    return r;
  }
};

// Four codes, the first at bit 0 of `chunk`, as the levels that they pick from a grid.
template <int BITS> inline float32x4_t four_levels(uint32_t chunk, const float* grid) {
  // Byte b of a lane takes byte 4 * code + b of the grid.
  const uint32x4_t bytes = vmlaq_n_u32(vdupq_n_u32(0x03020100), four_codes<BITS>(chunk), 0x04040404);
  const uint8x16_t index = vreinterpretq_u8_u32(bytes);
  const uint8_t* const table = reinterpret_cast<const uint8_t*>(grid);
  if constexpr (BITS == 2) return vreinterpretq_f32_u8(vqtbl1q_u8(vld1q_u8(table), index));
  else return vreinterpretq_f32_u8(vqtbl2q_u8({{vld1q_u8(table), vld1q_u8(table + 16)}}, index));
}

// The levels that the sixteen codes of `2 * BITS` bytes pick: the first eight from one grid, the others from another.
template <int BITS> inline F16 picked_levels(const uint8_t* codes, const float* low, const float* high) {
  const uint64_t chunk = load_chunk<2 * BITS>(codes);
  F16 r;
  for (int i = 0; i < 4; ++i)
    r.v[i] = four_levels<BITS>(static_cast<uint32_t>(chunk >> (4 * BITS * i)), i < 2 ? low : high);
  return r;
}
template <int BITS> inline F16 levels(const uint8_t* codes, const float* grid) {
  return picked_levels<BITS>(codes, grid, grid);
}
template <int BITS> inline F16 levels_of_two(const uint8_t* codes, const float* grids) {
  return picked_levels<BITS>(codes, grids, grids + (1 << BITS));
}

}  // namespace moepack::MOEPACK_ISA
