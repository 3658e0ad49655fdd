// Groups side by side: lane l of every vector belongs to group l of a block. Lanes never mix, so the width, which is
// the widest of the instruction set, cannot change a result.
#pragma once
#include <cstdint>

namespace moepack::MOEPACK_ISA {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * lanes)));

inline Floats all(float value) { return Floats{} + value; }

inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// To the nearest integer, ties to even; for 0 <= value < 2^22.
inline Floats rounded(Floats value) { return (value + 0x1p23f) - 0x1p23f; }

}  // namespace moepack::MOEPACK_ISA
