// Choosing between a fitted grid and the min-max grid by the error that remains after storing.
#pragma once
#include "minmax.h"

namespace moepack::MOEPACK_ISA {

// A least-squares fit in the unit range of its group, where the smallest weight is 0 and the largest 1.
struct UnitFit {
    float scale;
    float mean;       // of the weights
    float mean_code;  // of the codes that gave this scale
};

// Rounds the scale first; the bias is then the best one for the rounded scale.
inline StoredGrid stored_fit(const UnitFit& fit, const Extremes& range) {
    const double low = range.low, span = double(range.high) - low;
    const uint16_t scale = bfloat16_nearest(float(span * fit.scale));
    const double bias = low + span * fit.mean - double(float_of_bfloat16(scale)) * fit.mean_code;
    return {scale, bfloat16_nearest(float(bias))};
}

// Sum of squared errors of the weights as they would be read back: eight partial sums, joined pairwise.
inline double squared_error(const float* weights, const uint8_t* codes, int count, const Grid& grid) {
    double sums[8] = {};
    for (int i = 0; i < count; i += 8)
        for (int part = 0; part < 8; part++) {
            const float stored = float(codes[i + part]) * grid.scale + grid.bias;
            const double error = double(weights[i + part]) - double(stored);
            sums[part] += error * error;
        }
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// Stores the fit, or the min-max grid where that comes out better.
inline void store_better(const Target& target, int64_t group, const float* weights, const Extremes& range,
                         const StoredGrid& fit) {
    alignas(64) uint8_t fit_codes[max_group_size], minmax_codes[max_group_size];
    const int size = target.group_size;
    const Grid grid = minmax_grid(range, target.bits);
    assign_codes(weights, size, fit.values(), target.bits, fit_codes);
    assign_codes(weights, size, grid, target.bits, minmax_codes);
    const double fit_error = squared_error(weights, fit_codes, size, fit.values());
    const double minmax_error = squared_error(weights, minmax_codes, size, truncated(grid).values());
    if (fit_error <= minmax_error) return store(target, group, fit, fit_codes);
    store(target, group, truncated(grid), minmax_codes);
}

}  // namespace moepack::MOEPACK_ISA
