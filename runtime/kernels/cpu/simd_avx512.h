// Sixteen lanes as one AVX-512 register.
#pragma once

#include <immintrin.h>

namespace moepack::MOEPACK_ISA {

struct F16 {
  __m512 v;
};

inline F16 load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store(float* to, F16 a) { _mm512_storeu_ps(to, a.v); }
// to[0..64) = the first `count` bytes of `from`, then zeros. One whole store: narrower ones would stall the load to come.
inline void copy_part(void* to, const void* from, int64_t count) {
  _mm512_storeu_si512(to, _mm512_maskz_loadu_epi8(count < 64 ? (uint64_t{1} << count) - 1 : ~uint64_t{0}, from));
}
inline void store_part(float* to, F16 value, int64_t count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), value.v);
}
inline F16 set(float x) { return {_mm512_set1_ps(x)}; }
inline F16 add(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 sub(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F16 mul(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 div(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }

inline float reduce_add(F16 a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// p times two to the integer held in the low mantissa bits of `shifted`.
inline F16 add_exponent(F16 p, F16 shifted) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p.v), exponent))};
}

inline F16 load_bf16(const uint16_t* from) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
// 16 / REPEAT values, each in REPEAT lanes.
template <int REPEAT> inline F16 load_bf16_repeated(const uint16_t* from) {
  if constexpr (REPEAT == 1) return load_bf16(from);
  __m128i halves;
  if constexpr (REPEAT == 2) halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  else halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  constexpr int STEP = REPEAT == 2 ? 1 : 2;
  const __m512i index = _mm512_srli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), STEP);
  const __m512i words = _mm512_permutexvar_epi32(index, _mm512_castsi256_si512(_mm256_cvtepu16_epi32(halves)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))};
}
inline F16 load_f16(const uint16_t* from) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}

// The sixteen codes of `2 * BITS` bytes, each in the low bits of a lane, with its neighbours still above it.
template <int BITS> inline __m512i raw_codes(const uint8_t* from) {
  const __m512i shifts =
      _mm512_setr_epi32(0, BITS, 2 * BITS, 3 * BITS, 4 * BITS, 5 * BITS, 6 * BITS, 7 * BITS, 8 * BITS, 9 * BITS,
                        10 * BITS, 11 * BITS, 12 * BITS, 13 * BITS, 14 * BITS, 15 * BITS);
  if constexpr (BITS == 8) return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  if constexpr (BITS == 2) {
    int32_t word;
    std::memcpy(&word, from, 4);
    return _mm512_srlv_epi32(_mm512_set1_epi32(word), shifts);
  }
  __m128i bytes;
  if constexpr (BITS == 4) bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  if constexpr (BITS == 3) {
    uint32_t low;
    uint16_t high;
    std::memcpy(&low, from, 4), std::memcpy(&high, from + 4, 2);
    bytes = _mm_cvtsi64_si128(static_cast<int64_t>(static_cast<uint64_t>(high) << 32 | low));
  }
  if constexpr (BITS == 6) {
    int32_t high;
    std::memcpy(&high, from + 8, 4);
    bytes = _mm_insert_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)), high, 2);
  }
  // Lane i takes the two bytes that hold bit i * BITS and the one after it, then drops the bits below its code.
  constexpr auto pick = [](int i) {
    const int byte = i * BITS / 8;
    return byte | (byte + 1) << 8 | 0x80800000;
  };
  const __m512i control =
      _mm512_setr_epi32(pick(0), pick(1), pick(2), pick(3), pick(4), pick(5), pick(6), pick(7), pick(8), pick(9),
                        pick(10), pick(11), pick(12), pick(13), pick(14), pick(15));
  const __m512i pairs = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), control);
  return _mm512_srlv_epi32(pairs, _mm512_and_si512(shifts, _mm512_set1_epi32(7)));
}

// One group's weights, sixteen at a time: code * scale + bias, rounded after the product and after the sum.
// Up to four bits, all the group's weights fit a table of sixteen lanes that the raw codes index.
template <int BITS> struct Group {
  __m512 scale, bias;
  __m512 table;
  void prepare(float s, float b) {
    scale = _mm512_set1_ps(s), bias = _mm512_set1_ps(b);
    if constexpr (BITS <= 4) {
      constexpr int mask = (1 << BITS) - 1;
      const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4 & mask, 5 & mask, 6 & mask, 7 & mask, 8 & mask, 9 & mask,
                                          10 & mask, 11 & mask, 12 & mask, 13 & mask, 14 & mask, 15 & mask);
      table = _mm512_add_ps(_mm512_mul_ps(codes, scale), bias);
    }
  }
  F16 weights(const uint8_t* from) const {
    const __m512i raw = raw_codes<BITS>(from);
    if constexpr (BITS <= 4) return {_mm512_permutexvar_ps(raw, table)};
    const __m512i codes = BITS == 8 ? raw : _mm512_and_si512(raw, _mm512_set1_epi32((1 << BITS) - 1));
    return {_mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(codes), scale), bias)};
  }
};

// The sixteen codes of `2 * BITS` bytes, two or three bits each, as in raw_codes. Two words hold them, which overlap.
template <int BITS> inline __m512i picks(const uint8_t* from) {
  constexpr int MORE = 32 - 8 * BITS;  // bits of the second word that precede its eight codes
  const __m512i shifts =
      _mm512_setr_epi32(0, BITS, 2 * BITS, 3 * BITS, 4 * BITS, 5 * BITS, 6 * BITS, 7 * BITS, MORE, MORE + BITS,
                        MORE + 2 * BITS, MORE + 3 * BITS, MORE + 4 * BITS, MORE + 5 * BITS, MORE + 6 * BITS,
                        MORE + 7 * BITS);
  int32_t low, high;
  std::memcpy(&low, from, 4), std::memcpy(&high, from + 2 * BITS - 4, 4);
  __m512i words = _mm512_set1_epi32(low);
  if constexpr (BITS == 3) words = _mm512_mask_set1_epi32(words, 0xff00, high);
  return _mm512_srlv_epi32(words, shifts);
}

// The levels that the sixteen codes of `2 * BITS` bytes pick from a grid. A whole index costs less than loading the
// grid into every part of the register.
template <int BITS> inline F16 levels(const uint8_t* codes, const float* grid) {
  const __m512i index = _mm512_and_si512(picks<BITS>(codes), _mm512_set1_epi32((1 << BITS) - 1));
  if constexpr (BITS == 2) return {_mm512_permutexvar_ps(index, _mm512_castps128_ps512(_mm_loadu_ps(grid)))};
  return {_mm512_permutexvar_ps(index, _mm512_castps256_ps512(_mm256_loadu_ps(grid)))};
}

// The same of two grids: the first eight codes pick from one, the others from the next.
template <int BITS> inline F16 levels_of_two(const uint8_t* codes, const float* grids) {
  constexpr int SIZE = 1 << BITS, KEPT_OR_SET = 0xea;  // a & b | c
  const __m512i next = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, SIZE, SIZE, SIZE, SIZE, SIZE, SIZE, SIZE, SIZE);
  const __m512i index = _mm512_ternarylogic_epi32(picks<BITS>(codes), _mm512_set1_epi32(SIZE - 1), next, KEPT_OR_SET);
  if constexpr (BITS == 2) return {_mm512_permutexvar_ps(index, _mm512_castps256_ps512(_mm256_loadu_ps(grids)))};
  return {_mm512_permutexvar_ps(index, _mm512_loadu_ps(grids))};
}

}  // namespace moepack::MOEPACK_ISA
