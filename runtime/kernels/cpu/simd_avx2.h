// Sixteen lanes as two AVX registers, with FMA and F16C.
#pragma once

#include <immintrin.h>

namespace moepack::MOEPACK_ISA {

struct F16 {
  __m256 lo, hi;
};

inline F16 load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float* to, F16 a) { _mm256_storeu_ps(to, a.lo), _mm256_storeu_ps(to + 8, a.hi); }
inline F16 set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 add(F16 a, F16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F16 sub(F16 a, F16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F16 mul(F16 a, F16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F16 div(F16 a, F16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F16 max(F16 a, F16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F16 min(F16 a, F16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }

inline float reduce_add(F16 a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// p times two to the integer held in the low mantissa bits of `shifted`.
inline __m256 add_exponent_half(__m256 p, __m256 shifted) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}
inline F16 add_exponent(F16 p, F16 shifted) {
  return {add_exponent_half(p.lo, shifted.lo), add_exponent_half(p.hi, shifted.hi)};
}

inline __m128i load_eight(const uint16_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
inline __m256 widen_bf16(const uint16_t* from) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_eight(from)), 16));
}
inline F16 load_bf16(const uint16_t* from) { return {widen_bf16(from), widen_bf16(from + 8)}; }
// 16 / REPEAT values, each in REPEAT lanes.
template <int REPEAT> inline F16 load_bf16_repeated(const uint16_t* from) {
  if constexpr (REPEAT == 1) return load_bf16(from);
  uint16_t halves[16];
  for (int i = 0; i < 16; ++i) halves[i] = from[i / REPEAT];
  return load_bf16(halves);
}
inline F16 load_f16(const uint16_t* from) {
  return {_mm256_cvtph_ps(load_eight(from)), _mm256_cvtph_ps(load_eight(from + 8))};
}

// The eight codes of `BITS` bytes, each in the low bits of a lane, with its neighbours still above it.
template <int BITS> inline __m256i raw_codes(const uint8_t* from) {
  const __m256i shifts = _mm256_setr_epi32(0, BITS, 2 * BITS, 3 * BITS, 4 * BITS, 5 * BITS, 6 * BITS, 7 * BITS);
  const uint64_t chunk = load_chunk<BITS>(from);
  if constexpr (BITS == 8) return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(chunk)));
  if constexpr (BITS <= 4) return _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int32_t>(chunk)), shifts);
  // Lane i takes the two bytes that hold bit i * BITS and the one after it, then drops the bits below its code.
  constexpr auto pick = [](int i) {
    const int byte = i * BITS / 8;
    return byte | (byte + 1) << 8 | 0x80800000;
  };
  const __m256i control = _mm256_setr_epi32(pick(0), pick(1), pick(2), pick(3), pick(4), pick(5), pick(6), pick(7));
  const __m256i pairs = _mm256_shuffle_epi8(_mm256_set1_epi64x(static_cast<int64_t>(chunk)), control);
  return _mm256_srlv_epi32(pairs, _mm256_and_si256(shifts, _mm256_set1_epi32(7)));
}

// One group's weights, sixteen at a time: code * scale + bias, rounded after the product and after the sum.
// Up to three bits, all the group's weights fit a table of eight lanes that the raw codes index.
template <int BITS> struct Group {
  __m256 scale, bias;
  __m256 table;
  void prepare(float s, float b) {
    scale = _mm256_set1_ps(s), bias = _mm256_set1_ps(b);
    if constexpr (BITS <= 3) {
      constexpr int mask = (1 << BITS) - 1;
      const __m256 codes = _mm256_setr_ps(0, 1, 2, 3, 4 & mask, 5 & mask, 6 & mask, 7 & mask);
      table = _mm256_add_ps(_mm256_mul_ps(codes, scale), bias);
    }
  }
  __m256 half(const uint8_t* from) const {
    const __m256i raw = raw_codes<BITS>(from);
    if constexpr (BITS <= 3) return _mm256_permutevar8x32_ps(table, raw);
    const __m256i codes = _mm256_and_si256(raw, _mm256_set1_epi32((1 << BITS) - 1));
    return _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(codes), scale), bias);
  }
  F16 weights(const uint8_t* from) const { return {half(from), half(from + BITS)}; }
};

// Eight codes as the levels that they pick from a grid. `word` holds them from bit FIRST on.
template <int BITS, int FIRST> inline __m256 eight_levels(const uint8_t* word, const float* grid) {
  int32_t bits;
  std::memcpy(&bits, word, 4);
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i shifts = _mm256_add_epi32(_mm256_mullo_epi32(lanes, _mm256_set1_epi32(BITS)), _mm256_set1_epi32(FIRST));
  const __m256i raw = _mm256_srlv_epi32(_mm256_set1_epi32(bits), shifts);
  if constexpr (BITS == 2) return _mm256_permutevar_ps(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(grid)), raw);
  return _mm256_permutevar8x32_ps(_mm256_loadu_ps(grid), raw);
}

// The levels that the sixteen codes of `2 * BITS` bytes pick from a grid.
template <int BITS> inline F16 levels(const uint8_t* codes, const float* grid) {
  return {eight_levels<BITS, 0>(codes, grid), eight_levels<BITS, 32 - 8 * BITS>(codes + 2 * BITS - 4, grid)};
}
// The same of two grids: the first eight codes pick from one, the others from the next.
template <int BITS> inline F16 levels_of_two(const uint8_t* codes, const float* grids) {
  return {eight_levels<BITS, 0>(codes, grids),
          eight_levels<BITS, 32 - 8 * BITS>(codes + 2 * BITS - 4, grids + (1 << BITS))};
}

}  // namespace moepack::MOEPACK_ISA
