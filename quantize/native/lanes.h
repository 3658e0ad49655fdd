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

typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));

inline Floats all(float value) { return Floats{} + value; }

inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline float least_of(const Four& four) {
    const float even = four[0] < four[2] ? four[0] : four[2], odd = four[1] < four[3] ? four[1] : four[3];
    return even < odd ? even : odd;
}

inline float least_of(const Eight& eight) {
    const Four low = __builtin_shufflevector(eight, eight, 0, 1, 2, 3);
    const Four high = __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
    return least_of(Four(low < high ? low : high));
}

#if defined(__AVX512F__)
inline float least_of(const Floats& sixteen) {
    const Eight low = __builtin_shufflevector(sixteen, sixteen, 0, 1, 2, 3, 4, 5, 6, 7);
    const Eight high = __builtin_shufflevector(sixteen, sixteen, 8, 9, 10, 11, 12, 13, 14, 15);
    return least_of(Eight(low < high ? low : high));
}
#endif

// To the nearest integer, ties to even; for 0 <= value < 2^22.
inline Floats rounded(Floats value) { return (value + 0x1p23f) - 0x1p23f; }

}  // namespace moepack::MOEPACK_ISA
