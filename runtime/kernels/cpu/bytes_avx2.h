// Bytes as two AVX registers. AVX2 adds products of bytes in pairs, in sixteen bits that must not overflow.
#pragma once

#include <immintrin.h>

namespace moepack::MOEPACK_ISA {

struct U64 {
  __m256i lo, hi;
};
struct I16 {
  __m256i lo, hi;
};

inline __m256i load_half(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline U64 load_bytes(const uint8_t* from) { return {load_half(from), load_half(from + 32)}; }
inline void store_bytes(uint8_t* to, U64 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32), a.hi);
}
inline U64 load_signed(const int8_t* from) { return load_bytes(reinterpret_cast<const uint8_t*>(from)); }
inline U64 repeat_four(const int8_t* from) {
  int32_t four;
  std::memcpy(&four, from, 4);
  return {_mm256_set1_epi32(four), _mm256_set1_epi32(four)};
}
inline I16 set_ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I16 load_ints(const int32_t* from) { return {load_half(from), load_half(from + 8)}; }
inline I16 add_ints(I16 a, I16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
template <int BITS> inline I16 shift_left(I16 a) {
  return {_mm256_slli_epi32(a.lo, BITS), _mm256_slli_epi32(a.hi, BITS)};
}
inline F16 to_floats(I16 a) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  return {_mm512_cvtepi32_ps(_mm512_inserti64x4(_mm512_castsi256_si512(a.lo), a.hi, 1))};
#else
  return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
#endif
}

// Weights above 127 would overflow: their highest bit is counted apart.
template <int MOST> inline __m256i add_half_products(__m256i sums, __m256i weights, __m256i x) {
  if constexpr (MOST <= 127)
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(weights, x), _mm256_set1_epi16(1)));
  const __m256i low = _mm256_and_si256(weights, _mm256_set1_epi8(127));
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(weights, 7), _mm256_set1_epi8(1));
  const __m256i lows = _mm256_madd_epi16(_mm256_maddubs_epi16(low, x), _mm256_set1_epi16(1));
  const __m256i highs = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), _mm256_set1_epi16(128));
  return _mm256_add_epi32(sums, _mm256_add_epi32(lows, highs));
}

// sums[i] += weights[4 i] * x[4 i] + ... + weights[4 i + 3] * x[4 i + 3]; weights are unsigned, at most MOST, x signed
// and at least -127.
template <int MOST> inline I16 add_products(I16 sums, U64 weights, U64 x) {
  return {add_half_products<MOST>(sums.lo, weights.lo, x.lo), add_half_products<MOST>(sums.hi, weights.hi, x.hi)};
}

inline __m256i fold_half(I16 a) { return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a.lo, a.hi), 0xd8); }
inline I16 fold(I16 a, I16 b) { return {fold_half(a), fold_half(b)}; }

template <int FIRST> inline U64 shifted(U64 bytes) {
  if constexpr (FIRST == 0) return bytes;
  return {_mm256_srli_epi16(bytes.lo, FIRST), _mm256_srli_epi16(bytes.hi, FIRST)};
}
template <int BITS> inline U64 lowest(U64 bytes) {
  const __m256i mask = _mm256_set1_epi8((1 << BITS) - 1);
  return {_mm256_and_si256(bytes.lo, mask), _mm256_and_si256(bytes.hi, mask)};
}

// The levels of sixteen codebooks, as bytes 128 above them: for every code the levels of all books.
template <int BITS> struct Books {
  __m256i tables[1 << BITS];
  explicit Books(const uint8_t* table) {
    for (int code = 0; code < 1 << BITS; ++code) {
      alignas(16) uint8_t of[16];
      for (int book = 0; book < 16; ++book) of[book] = table[book << BITS | code];
      tables[code] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(of)));
    }
  }
  // Halves the tables by each bit of the codes, the lowest first.
  template <int FIRST, int COUNT> __m256i choose(__m256i codes, __m256i books) const {
    if constexpr (COUNT == 1) return _mm256_shuffle_epi8(tables[FIRST], books);
    else {
      constexpr int bit = COUNT == 2 ? 0 : COUNT == 4 ? 1 : 2;
      return _mm256_blendv_epi8(choose<FIRST, COUNT / 2>(codes, books),
                                choose<FIRST + COUNT / 2, COUNT / 2>(codes, books), _mm256_slli_epi16(codes, 7 - bit));
    }
  }
  U64 levels(U64 codes, U64 books) const {
    return {choose<0, 1 << BITS>(codes.lo, books.lo), choose<0, 1 << BITS>(codes.hi, books.hi)};
  }
};

// The books of a chunk, in the low four bits of each byte: of 64 bytes, every SPAN follow one book.
template <int BITS, int SPAN> inline U64 books_of(const uint8_t* grids) {
  alignas(32) uint8_t twice[64];  // each grid byte as often as bytes follow its two books
  uint64_t eight[2] = {};
  std::memcpy(eight, grids, 32 / SPAN);
  const __m128i bytes = _mm_set_epi64x(static_cast<int64_t>(eight[1]), static_cast<int64_t>(eight[0]));
  alignas(16) uint8_t places[64];
  for (int i = 0; i < 64; ++i) places[i] = static_cast<uint8_t>(i / (2 * SPAN));
  for (int i = 0; i < 64; i += 16) {
    const __m128i place = _mm_load_si128(reinterpret_cast<const __m128i*>(places + i));
    _mm_store_si128(reinterpret_cast<__m128i*>(twice + i), _mm_shuffle_epi8(bytes, place));
  }
  alignas(32) uint8_t second[64];
  for (int i = 0; i < 64; ++i) second[i] = i / SPAN % 2 ? 255 : 0;
  const auto half = [&](int at) {
    const __m256i both = load_half(twice + at), mask = load_half(second + at), nibble = _mm256_set1_epi8(15);
    return _mm256_and_si256(_mm256_blendv_epi8(both, _mm256_srli_epi16(both, 4), mask), nibble);
  };
  return {half(0), half(32)};
}

}  // namespace moepack::MOEPACK_ISA
