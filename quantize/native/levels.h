// The levels of a grid, and the midpoints between them: a weight's code is how many midpoints it exceeds.
#pragma once
#include "kernels.h"

namespace moepack::MOEPACK_ISA {

// One grid. All weights of a group on the grid that is zero have code 0.
template <int bits>
struct Levels {
    static constexpr int count = 1 << bits;
    float levels[count];
    float midpoints[count - 1];

    explicit Levels(const int16_t* grid) {
        for (int i = 0; i < count; i++) levels[i] = float(grid[i]);
        for (int i = 0; i < count - 1; i++)
            midpoints[i] = levels[i] < levels[i + 1] ? (levels[i] + levels[i + 1]) / 2 : __builtin_inff();
    }

    // The magnitude of the level furthest from zero.
    float highest() const { return -levels[0] > levels[count - 1] ? -levels[0] : levels[count - 1]; }
};

}  // namespace moepack::MOEPACK_ISA
