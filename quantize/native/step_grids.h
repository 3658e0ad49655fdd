// Two-level affine: the step and the zero of one group. Grids of one step differ in the zero only, so they are one
// shelf; another step is the same shelf in another unit, unit = step * scale.
#pragma once
#include "distances.h"

namespace moepack::MOEPACK_ISA {

constexpr int highest_step = 15;

// What the grids of one step are, in units of the step.
template <int bits>
struct Span {
    static constexpr float top = (1 << bits) - 1;
    static constexpr float width = 8 * top;
    static constexpr float highest = bits == 2 ? 20 : 44;   // level, of zero 0
    static constexpr float lowest = bits == 2 ? -19 : -42;  // level, of zero 15
    static constexpr float per_zero = bits == 2 ? 1 : 2;    // how much a zero more lowers all levels
    static constexpr float first = bits == 2 ? -4 : -12;    // lowest level of zero 0
};

// Which units are worth looking at: shares of the unit that just covers a group. Wider ones suit groups that use no
// code at one end or, of many codes, at both.
template <int bits>
struct Shares {
    static constexpr float narrowest = bits == 2 ? 0.45f : 0.5f;
    static constexpr float widest = bits == 2 ? 1.55f : 1.45f;
};

struct Extent {
    float cover;  // the unit whose grids just cover the group
    float power;  // the error of the grid that is zero
};

template <int bits, int size>
inline Extent extent_of(const float* values, const float* shares) {
    float low = values[0], high = values[0], power = 0;
    for (int i = 0; i < size; i++) {
        low = values[i] < low ? values[i] : low;
        high = values[i] > high ? values[i] : high;
        power += shares[i] * (values[i] * values[i]);
    }
    const float up = high / Span<bits>::highest, down = low / Span<bits>::lowest;
    const float ends = up > down ? up : down, across = (high - low) / Span<bits>::width;
    return {ends > across ? ends : across, power};
}

template <int bits, int size>
class StepGrids {
public:
    StepGrids(const int16_t* table) : distances(table, 1 << bits, 1, shelf) {}

    Shelf sums(const float* values, const float* shares, float unit) const {
        int32_t rows[size];
        distances.find_rows(values, size, 1 / unit, rows);
        return distances.sums<size>(rows, shares);
    }

    // Of the group whose weights are `values`, in the unit of `scale`, and count as `shares`.
    uint8_t best_grid(const float* values, const float* shares, float scale) const {
        const Extent extent = extent_of<bits, size>(values, shares);
        const float cover = extent.cover / scale;
        uint32_t steps = 0;
        for (int step = 1; step <= highest_step; step++)
            if (float(step) > cover * Shares<bits>::narrowest && float(step) < cover * Shares<bits>::widest)
                steps |= 1u << step;
        if (steps == 0) steps = cover < 1 ? 1u << 1 : 1u << highest_step;
        return best_of_steps(values, shares, scale, steps, extent.power);
    }

    // The best of these steps, and of the zero grid, whose error is `power`.
    uint8_t best_of_steps(const float* values, const float* shares, float scale, uint32_t steps, float power) const {
        float best = power;
        int grid = 0;
        for (; steps != 0; steps &= steps - 1) {
            const int step = __builtin_ctz(steps);
            const float unit = float(step) * scale;
            const Shelf here = sums(values, shares, unit);
            const float least = here.least(), error = least * (unit * unit);
            if (error < best) best = error, grid = step | here.first_of(least) << 4;
        }
        return uint8_t(grid);
    }

private:
    Distances distances;
};

}  // namespace moepack::MOEPACK_ISA
