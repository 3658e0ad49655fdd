// Sixteen float lanes, written once per instruction set, so that every kernel is written once.
//
// All instruction sets keep the same sixteen lanes and the same reduction tree; those with a fused multiply-add agree
// bit for bit. The build compiles each kernel file once per set, with MOEPACK_ISA naming the namespace it goes into.
// Nothing here may use templates of the standard library: the linker would merge them across instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifndef MOEPACK_ISA
#error "compile kernel files with MOEPACK_ISA set to baseline, avx2, avx512 or neon"
#endif

namespace moepack::MOEPACK_ISA {

// `BITS` bytes as the low end of an integer, put together in a register: reading back what was stored in parts would stall.
template <int BITS> inline uint64_t load_chunk(const uint8_t* from) {
  uint16_t two;
  uint32_t four;
  uint64_t eight;
  if constexpr (BITS == 2) return std::memcpy(&two, from, 2), two;
  if constexpr (BITS == 3) return std::memcpy(&two, from, 2), two | uint64_t{from[2]} << 16;
  if constexpr (BITS == 4) return std::memcpy(&four, from, 4), four;
  if constexpr (BITS == 6)
    return std::memcpy(&four, from, 4), std::memcpy(&two, from + 4, 2), four | uint64_t{two} << 32;
  if constexpr (BITS == 8) return std::memcpy(&eight, from, 8), eight;
}

}  // namespace moepack::MOEPACK_ISA

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "simd_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "simd_avx2.h"
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include "simd_neon.h"
#else
#include "simd_portable.h"
#endif

namespace moepack::MOEPACK_ISA {

constexpr int LANES = 16;

inline float bf16_to_float(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rows of a tile of several tokens. Walks over more rows serve one token, which would wait for memory: as it goes, such
// a walk asks for as many bytes of the R rows that follow, for rows are too short for the hardware to see it coming.
constexpr int ROWS_OF_TOKENS = 2;

// Asks the caches for bytes that will soon be read; any address will do.
__attribute__((always_inline)) inline void prefetch(const uint8_t* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
}

// The same pointer, of which the compiler no longer knows what lies there: it would keep loads for later, and have no
// registers left for sums.
template <typename T> __attribute__((always_inline)) inline const T* forgotten(const T* pointer) {
  asm("" : "+r"(pointer));
  return pointer;
}

#if !defined(__AVX512F__)
// to[0..64) = the first `count` bytes of `from`, then zeros.
inline void copy_part(void* to, const void* from, int64_t count) {
  std::memset(to, 0, 64);
  std::memcpy(to, from, static_cast<size_t>(count));
}

inline void store_part(float* to, F16 value, int64_t count) {
  alignas(64) float lanes[LANES];
  store(lanes, value);
  std::memcpy(to, lanes, static_cast<size_t>(count) * sizeof(float));
}
#endif

inline F16 load_part(const float* from, int64_t count) {
  alignas(64) float lanes[LANES];
  copy_part(lanes, from, count * static_cast<int64_t>(sizeof(float)));
  return load(lanes);
}

inline F16 load_up_to(const float* from, int64_t count) { return count >= LANES ? load(from) : load_part(from, count); }

inline void store_up_to(float* to, F16 value, int64_t count) {
  if (count >= LANES) store(to, value);
  else store_part(to, value, count);
}

// e^x to about one unit in the last place, for any x; below -87 it is the smallest result, not zero.
// x = n ln 2 + r, |r| <= ln(2)/2; a degree-6 Taylor-like polynomial (Cephes' coefficients) in r, then n is added to
// the exponent bits. The magic number rounds to an integer and leaves it in the low bits of its mantissa.
inline F16 exp(F16 x) {
  const F16 magic = set(12582912.0f);
  x = min(set(88.0f), max(set(-87.0f), x));  // this operand order lets NaN through
  const F16 shifted = fma(x, set(1.44269504088896341f), magic);
  const F16 n = sub(shifted, magic);
  F16 r = fma(n, set(-0.693359375f), x);
  r = fma(n, set(2.12194440e-4f), r);
  F16 p = set(1.9875691500e-4f);
  p = fma(p, r, set(1.3981999507e-3f));
  p = fma(p, r, set(8.3334519073e-3f));
  p = fma(p, r, set(4.1665795894e-2f));
  p = fma(p, r, set(1.6666665459e-1f));
  p = fma(p, r, set(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), set(1.0f));
  return add_exponent(p, shifted);
}

inline F16 sigmoid(F16 x) { return div(set(1.0f), add(set(1.0f), exp(sub(set(0.0f), x)))); }

inline F16 silu(F16 x) { return div(x, add(set(1.0f), exp(sub(set(0.0f), x)))); }

// The dot product of two arrays: sixteen running sums over ascending elements, then the tree.
inline float dot(const float* a, const float* b, int64_t count) {
  F16 sum = set(0.0f);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) sum = fma(load(a + i), load(b + i), sum);
  if (i < count) sum = fma(load_part(a + i, count - i), load_part(b + i, count - i), sum);
  return reduce_add(sum);
}

}  // namespace moepack::MOEPACK_ISA
