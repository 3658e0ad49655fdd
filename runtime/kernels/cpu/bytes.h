// Sixty-four bytes of weights or rounded activations, and the sixteen integer sums that their products go to.
//
// Written once per instruction set, like the floats of simd.h. Sums of integers are exact, so every instruction set gives
// the same ones, however it arrives at them.
#pragma once

#include "simd.h"

namespace moepack::MOEPACK_ISA {

constexpr int SIGNED = -1;  // instead of the largest weight: weights are signed, from -127 on

}  // namespace moepack::MOEPACK_ISA

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
#include "bytes_vnni.h"
#elif defined(__AVX2__)
#include "bytes_avx2.h"
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include "bytes_neon.h"
#else
#include "bytes_portable.h"
#endif

namespace moepack::MOEPACK_ISA {

constexpr int64_t BYTES = 64;

inline U64 load_bytes_up_to(const uint8_t* from, int64_t count) {
  if (count >= BYTES) return load_bytes(from);
  alignas(64) uint8_t bytes[BYTES];
  copy_part(bytes, from, count);
  return load_bytes(bytes);
}

// The sums of neighbours: of `N` times sixteen lanes, sixteen remain, in their order. N is a power of two.
template <int N> inline I16 fold_all(const I16* sums) {
  if constexpr (N == 1) return sums[0];
  else return fold(fold_all<N / 2>(sums), fold_all<N / 2>(sums + N / 2));
}

#if !defined(__AVX2__)
// The 64 codes of `8 * BITS` bytes, 3 or 6 bits each: eight at a time, halved three times.
template <int BITS> inline U64 unpack(const uint8_t* from) {
  uint64_t eights[8];
  for (int i = 0; i < 8; ++i) {
    uint64_t x = load_chunk<BITS>(from + BITS * i);
    x = (x & ((uint64_t{1} << 4 * BITS) - 1)) | x >> 4 * BITS << 32;
    x = (x & ((uint64_t{1} << 2 * BITS) - 1) * 0x0000000100000001) |
        (x >> 2 * BITS & ((uint64_t{1} << 2 * BITS) - 1) * 0x0000000100000001) << 16;
    eights[i] = (x & ((uint64_t{1} << BITS) - 1) * 0x0001000100010001) |
                (x >> BITS & ((uint64_t{1} << BITS) - 1) * 0x0001000100010001) << 8;
  }
  return load_bytes(reinterpret_cast<const uint8_t*>(eights));
}

#endif

#if !defined(__AVX512VBMI__) || !defined(__AVX512VNNI__)
// to[i] = the four bytes i of each of the sixteen rows.
inline void transpose(const U64 (&rows)[16], U64 (&to)[16]) {
  alignas(64) uint32_t from[16][16], turned[16][16];
  for (int i = 0; i < 16; ++i) store_bytes(reinterpret_cast<uint8_t*>(from[i]), rows[i]);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) turned[j][i] = from[i][j];
  for (int i = 0; i < 16; ++i) to[i] = load_bytes(reinterpret_cast<const uint8_t*>(turned[i]));
}
#endif

}  // namespace moepack::MOEPACK_ISA
