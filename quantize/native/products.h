// Matrix products in a fixed order: every element is a running difference over k = 0, 1, 2, ... rounded at each step.
// Vectors run along rows of the result, so neither their width nor the tiling can change a bit.
#pragma once
#include <cstdint>

#include "lanes.h"

namespace moepack::MOEPACK_ISA {

constexpr int side = 64;  // of a block: all matrices here are stored as rows of 64 elements

template <typename Real>
struct Wide {
    typedef Real Vector __attribute__((vector_size(4 * lanes)));
    static constexpr int count = 4 * lanes / int(sizeof(Real));
};

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int strip = 8;  // columns of `left` whose results fit in the registers beside two vectors
#else
constexpr int strip = 4;
#endif

// One strip and two vectors: out[c][r] -= left[k][c] * right[k][r].
template <typename Real>
inline void subtract_strip(const Real* left, const Real* right, int64_t count, Real* out) {
    using Vector = typename Wide<Real>::Vector;
    constexpr int width = Wide<Real>::count;
    Vector results[strip][2];
    for (int c = 0; c < strip; c++) __builtin_memcpy(results[c], out + c * side, sizeof results[c]);
    for (int64_t k = 0; k < count; k++) {
        Vector first, second;
        __builtin_memcpy(&first, right + k * side, sizeof first);
        __builtin_memcpy(&second, right + k * side + width, sizeof second);
        for (int c = 0; c < strip; c++) {
            results[c][0] -= left[k * side + c] * first;
            results[c][1] -= left[k * side + c] * second;
        }
    }
    for (int c = 0; c < strip; c++) __builtin_memcpy(out + c * side, results[c], sizeof results[c]);
}

// out[c][r] -= sum over k of left[k][c] * right[k][r], for c below `columns` (a multiple of 8) and all 64 r. `count` is
// cut so that a piece of either operand stays in the first caches.
template <typename Real>
inline void subtract_products(const Real* left, const Real* right, int64_t count, int columns, Real* out) {
    constexpr int64_t piece = 64;
    for (int64_t first = 0; first < count; first += piece) {
        const int64_t now = count - first < piece ? count - first : piece;
        for (int c = 0; c < columns; c += strip)
            for (int r = 0; r < side; r += 2 * Wide<Real>::count)
                subtract_strip(left + first * side + c, right + first * side + r, now, out + c * side + r);
    }
}

// A matrix that is zero below its diagonal, as 64 x 64 blocks: panel after panel of 64 columns, each from the top down
// to its diagonal block, so that the 64 columns of a panel are rows of 64 elements.
template <typename Real>
struct Panels {
    Real* elements;

    static int64_t size(int64_t blocks) { return blocks * (blocks + 1) / 2 * side * side; }
    Real* block(int64_t row, int64_t panel) const { return elements + (panel * (panel + 1) / 2 + row) * side * side; }
};

}  // namespace moepack::MOEPACK_ISA
