// Bytes as one AVX-512 register, with VNNI's products and VBMI's permutations.
#pragma once

#include <immintrin.h>

namespace moepack::MOEPACK_ISA {

struct U64 {
  __m512i v;
};
struct I16 {
  __m512i v;
};

inline U64 load_bytes(const uint8_t* from) { return {_mm512_loadu_si512(from)}; }
inline U64 load_signed(const int8_t* from) { return {_mm512_loadu_si512(from)}; }
inline void store_bytes(uint8_t* to, U64 a) { _mm512_storeu_si512(to, a.v); }
inline U64 repeat_four(const int8_t* from) {
  int32_t four;
  std::memcpy(&four, from, 4);
  return {_mm512_set1_epi32(four)};
}
inline I16 set_ints(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I16 load_ints(const int32_t* from) { return {_mm512_loadu_si512(from)}; }
template <int BITS> inline I16 shift_left(I16 a) { return {_mm512_slli_epi32(a.v, BITS)}; }
inline I16 add_ints(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline F16 to_floats(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }

// sums[i] += weights[4 i] * x[4 i] + ... + weights[4 i + 3] * x[4 i + 3]; weights are unsigned, at most MOST, x signed.
template <int MOST> inline I16 add_products(I16 sums, U64 weights, U64 x) {
  return {_mm512_dpbusd_epi32(sums.v, weights.v, x.v)};
}

inline I16 fold(I16 a, I16 b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return {_mm512_add_epi32(_mm512_permutex2var_epi32(a.v, even, b.v), _mm512_permutex2var_epi32(a.v, odd, b.v))};
}

// Every byte's bits from FIRST on, in its low bits; what lies above them may be another byte's.
template <int FIRST> inline U64 shifted(U64 bytes) {
  if constexpr (FIRST == 0) return bytes;
  return {_mm512_srli_epi16(bytes.v, FIRST)};
}
template <int BITS> inline U64 lowest(U64 bytes) {
  return {_mm512_and_si512(bytes.v, _mm512_set1_epi8(static_cast<char>((1 << BITS) - 1)))};
}

// The 64 codes of `8 * BITS` bytes, 3 or 6 bits each.
template <int BITS> inline U64 unpack(const uint8_t* from) {
  static_assert(BITS == 3 || BITS == 6);
  alignas(64) static constexpr auto place = [] {
    struct Places {
      uint8_t of[64];
    } places = {};
    for (int i = 0; i < 64; ++i) places.of[i] = static_cast<uint8_t>(i / 8 * BITS + i % 8);
    return places;
  }();
  const __m512i shifts = _mm512_set1_epi64(BITS == 3 ? 0x15120f0c09060300ll : 0x2a241e18120c0600ll);
  const __m512i bytes = _mm512_maskz_loadu_epi8((uint64_t{1} << 8 * BITS) - 1, from);
  const __m512i words = _mm512_permutexvar_epi8(_mm512_load_si512(place.of), bytes);
  return lowest<BITS>({_mm512_multishift_epi64_epi8(shifts, words)});
}

constexpr bool SIGNED_LEVELS = false;  // products take unsigned weights

// The levels of sixteen codebooks, as bytes 128 above them, and which book each byte's code picks from.
template <int BITS> struct Books {
  __m512i low, high;
  explicit Books(const uint8_t* table) : low(_mm512_loadu_si512(table)), high(low) {
    if constexpr (BITS == 3) high = _mm512_loadu_si512(table + 64);
  }
  // Codes are in the low BITS bits of their bytes, books in the four above; other bits are not looked at.
  U64 levels(U64 codes, U64 books) const {
    constexpr int THIRD_CHOOSES = 0xe4;  // c ? a : b
    const __m512i index =
        _mm512_ternarylogic_epi32(codes.v, books.v, _mm512_set1_epi8((1 << BITS) - 1), THIRD_CHOOSES);
    if constexpr (BITS == 2) return {_mm512_permutexvar_epi8(index, low)};
    else return {_mm512_permutex2var_epi8(low, index, high)};
  }
};

// The books of a chunk: of 64 bytes, every SPAN follow one book; books are four bits each, low ones first.
template <int BITS, int SPAN> inline U64 books_of(const uint8_t* grids) {
  constexpr int64_t LOW = 64 - BITS, HIGH = 4 - BITS;  // turns a nibble into bits BITS.. of a byte
  constexpr auto each = [](int64_t a, int64_t b, int64_t c, int64_t d) {
    return a * 0x0101 | b * 0x01010000 | c * 0x010100000000 | d * 0x0101000000000000;
  };
  if constexpr (SPAN == 2) {
    const __m512i words = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(grids)));
    return {_mm512_multishift_epi64_epi8(_mm512_set1_epi64(each(LOW, HIGH, 32 + LOW - 64, 32 + HIGH)), words)};
  }
  int64_t eight = 0;
  std::memcpy(&eight, grids, 32 / SPAN);
  if constexpr (SPAN == 4) {
    const __m512i words = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(eight));
    return {_mm512_multishift_epi64_epi8(_mm512_set1_epi64(each(LOW, LOW, HIGH, HIGH)), words)};
  }
  constexpr int PER = SPAN < 8 ? 1 : SPAN / 8;  // eights of bytes that follow one book
  const __m512i places = _mm512_setr_epi64(0, 1 / PER / 2, 2 / PER / 2, 3 / PER / 2, 4 / PER / 2, 5 / PER / 2,
                                           6 / PER / 2, 7 / PER / 2);
  const __m512i bytes = _mm512_and_si512(_mm512_permutexvar_epi8(places, _mm512_set1_epi64(eight)),
                                         _mm512_set1_epi64(0xff));
  constexpr auto turn = [](int i) { return (i / PER % 2 ? HIGH : LOW) * 0x0101010101010101; };
  const __m512i turns =
      _mm512_setr_epi64(turn(0), turn(1), turn(2), turn(3), turn(4), turn(5), turn(6), turn(7));
  return {_mm512_multishift_epi64_epi8(turns, bytes)};
}

// to[i] = the four bytes i of each of the sixteen rows.
inline void transpose(const U64 (&rows)[16], U64 (&to)[16]) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_epi32(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + 2 + j]);
      b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + 2 + j]);
    }
  // b[4 q + c] holds, of rows 4 q..4 q + 3, column 4 k + c in its part k.
  for (int c = 0; c < 4; ++c) {
    const __m512i low01 = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x44), high01 = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xee);
    const __m512i low23 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x44);
    const __m512i high23 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xee);
    to[c].v = _mm512_shuffle_i32x4(low01, low23, 0x88);
    to[4 + c].v = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    to[8 + c].v = _mm512_shuffle_i32x4(high01, high23, 0x88);
    to[12 + c].v = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
}

}  // namespace moepack::MOEPACK_ISA
