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

// Weights above 127 would overflow: their highest bit is counted apart. Signed weights lend their signs to x.
template <int MOST> inline __m256i add_half_products(__m256i sums, __m256i weights, __m256i x) {
  if constexpr (MOST == SIGNED)
    return add_half_products<127>(sums, _mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
  if constexpr (MOST <= 127)
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(weights, x), _mm256_set1_epi16(1)));
  const __m256i low = _mm256_and_si256(weights, _mm256_set1_epi8(127));
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(weights, 7), _mm256_set1_epi8(1));
  const __m256i lows = _mm256_madd_epi16(_mm256_maddubs_epi16(low, x), _mm256_set1_epi16(1));
  const __m256i highs = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), _mm256_set1_epi16(128));
  return _mm256_add_epi32(sums, _mm256_add_epi32(lows, highs));
}

// sums[i] += weights[4 i] * x[4 i] + ... + weights[4 i + 3] * x[4 i + 3]; weights are unsigned, at most MOST, or SIGNED,
// x signed and at least -127.
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
  const __m256i mask = _mm256_set1_epi8(static_cast<char>((1 << BITS) - 1));
  return {_mm256_and_si256(bytes.lo, mask), _mm256_and_si256(bytes.hi, mask)};
}

// Where sixteen of `8 * BITS` bytes begin that hold code `i` and the others of its sixteen.
template <int BITS> constexpr int begin_of_sixteen(int i) {
  const int own = i / 16 * 2 * BITS, last = 8 * BITS - 16;
  return own < last ? own : last;
}

// The 64 codes of `8 * BITS` bytes, 3 or 6 bits each. Two bytes that hold a code become sixteen bits; a factor moves the
// code to their top, a shift to the bottom; and two registers of sixteen bits are packed into one of bytes.
template <int BITS> inline U64 unpack(const uint8_t* from) {
  static_assert(BITS == 3 || BITS == 6);
  alignas(32) static constexpr auto place = [] {
    struct Places {
      uint8_t of[2][2][32];  // of a half, codes 0-7 and 16-23, then 8-15 and 24-31
    } places = {};
    for (int i = 0; i < 64; ++i) {
      const int byte = i * BITS / 8 - begin_of_sixteen<BITS>(i), at = i % 32 / 16 * 16 + i % 8 * 2;
      places.of[i / 32][i % 16 / 8][at] = static_cast<uint8_t>(byte);
      places.of[i / 32][i % 16 / 8][at + 1] = static_cast<uint8_t>(byte < 15 ? byte + 1 : 0x80);
    }
    return places;
  }();
  constexpr auto factor = [](int i) { return static_cast<int16_t>(1 << (16 - BITS - i * BITS % 8)); };
  const __m256i factors = _mm256_broadcastsi128_si256(_mm_setr_epi16(factor(0), factor(1), factor(2), factor(3), factor(4),
                                                                     factor(5), factor(6), factor(7)));
  const auto load_sixteen = [&](int i) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + begin_of_sixteen<BITS>(i)));
  };
  const auto half = [&](int h) {
    const __m256i bytes = _mm256_set_m128i(load_sixteen(32 * h + 16), load_sixteen(32 * h));
    const auto words = [&](int part) {
      const __m256i pairs = _mm256_shuffle_epi8(bytes, load_half(place.of[h][part]));
      return _mm256_srli_epi16(_mm256_mullo_epi16(pairs, factors), 16 - BITS);
    };
    return _mm256_packus_epi16(words(0), words(1));
  };
  return {half(0), half(1)};
}

constexpr bool SIGNED_LEVELS = true;

// The levels of sixteen codebooks: for every code the levels of all books.
template <int BITS> struct Books {
  __m256i tables[1 << BITS];
  explicit Books(const uint8_t* table) {
    for (int code = 0; code < 1 << BITS; ++code) {
      alignas(16) uint8_t of[16];
      for (int book = 0; book < 16; ++book) of[book] = table[book << BITS | code] ^ 128;
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

// Where b's elements are taken, each SPAN bytes long: at every other one.
template <int SPAN> inline __m256i every_other(__m256i a, __m256i b) {
  if constexpr (SPAN == 2) return _mm256_blend_epi16(a, b, 0xaa);
  else return _mm256_blend_epi32(a, b, SPAN == 4 ? 0xaa : SPAN == 8 ? 0xcc : 0xf0);
}

// The books of a chunk, in the low four bits of each byte: of 64 bytes, every SPAN follow one book.
template <int BITS, int SPAN> inline U64 books_of(const uint8_t* grids) {
  alignas(32) static constexpr auto place = [] {
    struct Places {
      uint8_t of[64];
    } places = {};
    for (int i = 0; i < 64; ++i) places.of[i] = static_cast<uint8_t>(i / (2 * SPAN));
    return places;
  }();
  const __m256i bytes = [&] {
    if constexpr (SPAN == 2) {
      return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(grids)));
    } else {
      int64_t eight = 0;
      std::memcpy(&eight, grids, 32 / SPAN);
      return _mm256_set1_epi64x(eight);
    }
  }();
  const auto half = [&](int at) {
    const __m256i both = _mm256_shuffle_epi8(bytes, load_half(place.of + at));
    return _mm256_and_si256(every_other<SPAN>(both, _mm256_srli_epi16(both, 4)), _mm256_set1_epi8(15));
  };
  return {half(0), half(32)};
}

}  // namespace moepack::MOEPACK_ISA
