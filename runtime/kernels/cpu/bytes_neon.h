// Bytes as four NEON registers, with the dot product instructions where the build may use them (arm64).
#pragma once

#include <arm_neon.h>

namespace moepack::MOEPACK_ISA {

struct U64 {
  uint8x16_t v[4];
};
struct I16 {
  int32x4_t v[4];
};

inline U64 load_bytes(const uint8_t* from) {
  return {{vld1q_u8(from), vld1q_u8(from + 16), vld1q_u8(from + 32), vld1q_u8(from + 48)}};
}
inline U64 load_signed(const int8_t* from) { return load_bytes(reinterpret_cast<const uint8_t*>(from)); }
inline void store_bytes(uint8_t* to, U64 a) {
  for (int i = 0; i < 4; ++i) vst1q_u8(to + 16 * i, a.v[i]);
}
inline U64 repeat_four(const int8_t* from) {
  uint32_t four;
  std::memcpy(&four, from, 4);
  const uint8x16_t all = vreinterpretq_u8_u32(vdupq_n_u32(four));
  return {{all, all, all, all}};
}
inline I16 set_ints(int32_t x) {
  const int32x4_t all = vdupq_n_s32(x);
  return {{all, all, all, all}};
}
inline I16 load_ints(const int32_t* from) {
  return {{vld1q_s32(from), vld1q_s32(from + 4), vld1q_s32(from + 8), vld1q_s32(from + 12)}};
}
inline I16 add_ints(I16 a, I16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vaddq_s32(a.v[i], b.v[i]);
  return a;
}
template <int BITS> inline I16 shift_left(I16 a) {
  for (int i = 0; i < 4; ++i) a.v[i] = vshlq_n_s32(a.v[i], BITS);
  return a;
}
inline F16 to_floats(I16 a) {
  F16 r;
  for (int i = 0; i < 4; ++i) r.v[i] = vcvtq_f32_s32(a.v[i]);
  return r;
}

inline int32x4_t add_quads(int32x4_t sums, int8x16_t weights, int8x16_t x) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sums, weights, x);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(weights), vget_low_s8(x)), high = vmull_high_s8(weights, x);
  return vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}

// sums[i] += weights[4 i] * x[4 i] + ... + weights[4 i + 3] * x[4 i + 3]; weights are unsigned, at most MOST, or SIGNED, x
// signed. Weights above 127 are not signed bytes: their highest bit is counted apart.
template <int MOST> inline I16 add_products(I16 sums, U64 weights, U64 x) {
  for (int i = 0; i < 4; ++i) {
    const int8x16_t factors = vreinterpretq_s8_u8(x.v[i]);
    if constexpr (MOST <= 127) {
      sums.v[i] = add_quads(sums.v[i], vreinterpretq_s8_u8(weights.v[i]), factors);
    } else {
      const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(weights.v[i], vdupq_n_u8(127)));
      const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(weights.v[i], 7));
      const int32x4_t highs = vshlq_n_s32(add_quads(vdupq_n_s32(0), high, factors), 7);
      sums.v[i] = vaddq_s32(add_quads(sums.v[i], low, factors), highs);
    }
  }
  return sums;
}

inline I16 fold(I16 a, I16 b) {
  return {{vpaddq_s32(a.v[0], a.v[1]), vpaddq_s32(a.v[2], a.v[3]), vpaddq_s32(b.v[0], b.v[1]),
           vpaddq_s32(b.v[2], b.v[3])}};
}

template <int FIRST> inline U64 shifted(U64 bytes) {
  if constexpr (FIRST != 0)
    for (int i = 0; i < 4; ++i) bytes.v[i] = vshrq_n_u8(bytes.v[i], FIRST);
  return bytes;
}
template <int BITS> inline U64 lowest(U64 bytes) {
  for (int i = 0; i < 4; ++i) bytes.v[i] = vandq_u8(bytes.v[i], vdupq_n_u8((1 << BITS) - 1));
  return bytes;
}

constexpr bool SIGNED_LEVELS = true;

// The levels of sixteen codebooks, looked up 64 bytes at a time.
template <int BITS> struct Books {
  uint8x16x4_t parts[BITS == 2 ? 1 : 2];
  explicit Books(const uint8_t* table) {
    for (int i = 0; i < (BITS == 2 ? 4 : 8); ++i)
      parts[i / 4].val[i % 4] = veorq_u8(vld1q_u8(table + 16 * i), vdupq_n_u8(128));
  }
  // Books have their four bits above the codes' BITS.
  U64 levels(U64 codes, U64 books) const {
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t index = vorrq_u8(vandq_u8(codes.v[i], vdupq_n_u8((1 << BITS) - 1)), books.v[i]);
      books.v[i] = vqtbl4q_u8(parts[0], index);
      if constexpr (BITS == 3) books.v[i] = vqtbx4q_u8(books.v[i], parts[1], vsubq_u8(index, vdupq_n_u8(64)));
    }
    return books;
  }
};

// The books of a chunk, in the four bits above a code's: of 64 bytes, every SPAN follow one book.
template <int BITS, int SPAN> inline U64 books_of(const uint8_t* grids) {
  uint8_t sixteen[16] = {}, places[64], turns[64];
  std::memcpy(sixteen, grids, 32 / SPAN);
  for (int i = 0; i < 64; ++i) {
    places[i] = static_cast<uint8_t>(i / (2 * SPAN));
    turns[i] = static_cast<uint8_t>(i / SPAN % 2 ? -4 : 0);
  }
  const uint8x16_t bytes = vld1q_u8(sixteen);
  U64 books;
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t both = vqtbl1q_u8(bytes, vld1q_u8(places + 16 * i));
    const uint8x16_t one = vshlq_u8(both, vreinterpretq_s8_u8(vld1q_u8(turns + 16 * i)));
    books.v[i] = vshlq_n_u8(vandq_u8(one, vdupq_n_u8(15)), BITS);
  }
  return books;
}

}  // namespace moepack::MOEPACK_ISA
