// Choosing between a fitted grid and the min-max grid by the error that remains after storing.
#pragma once
#include "minmax.h"

namespace moepack::MOEPACK_ISA {

// A least-squares fit in a group's own units: a weight is origin + unit * x, and x was fitted.
struct UnitFit {
    double origin;
    double unit;
    float scale;
    float mean;       // of x
    float mean_code;  // of the codes that gave this scale
};

// Rounds the scale first; the bias is then the best one for the rounded scale.
inline StoredGrid stored_fit(const UnitFit& fit) {
    const uint16_t scale = bfloat16_nearest(float(fit.unit * fit.scale));
    const double bias = fit.origin + fit.unit * fit.mean - double(float_of_bfloat16(scale)) * fit.mean_code;
    return {scale, bfloat16_nearest(float(bias))};
}

// The distinct or single values of a group, ascending or not, and how much each counts.
struct Weighted {
    const float* values;
    const float* importance;
};

// How much the weights of groups count: `groups` of them in a row, and every row is the same.
struct GroupShares {
    const float* values;
    int64_t groups;
    int size;

    const float* of(int64_t group) const { return values + group % groups * size; }
};

struct Candidate {
    StoredGrid grid;
    double error;  // weighted squared error of what will be read back
    alignas(64) uint8_t codes[max_group_size];
};

// Eight partial sums, joined pairwise: a fixed order, whatever the width of vectors.
template <int count>
inline double squared_error(const Weighted& group, const uint8_t* codes, const Grid& grid) {
    double sums[8] = {};
    for (int i = 0; i < count; i += 8)
        for (int part = 0; part < 8; part++) {
            const float stored = float(codes[i + part]) * grid.scale + grid.bias;
            const double error = double(group.values[i + part]) - double(stored);
            sums[part] += double(group.importance[i + part]) * (error * error);
        }
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

template <int count>
inline void evaluate(const Weighted& group, const Grid& coding, int bits, Candidate& candidate) {
    assign_codes<count>(group.values, coding, bits, candidate.codes);
    candidate.error = squared_error<count>(group, candidate.codes, candidate.grid.values());
}

// The fit, or the min-max grid where that comes out better (or the fit's parameters overflow bfloat16).
template <int count>
inline const Candidate& better_of(const Weighted& group, const Extremes& range, const StoredGrid& fit, int bits,
                                  Candidate (&candidates)[2]) {
    const Grid grid = minmax_grid(range, bits);
    candidates[0].grid = fit;
    candidates[1].grid = truncated(grid);
    evaluate<count>(group, fit.values(), bits, candidates[0]);
    evaluate<count>(group, grid, bits, candidates[1]);
    return candidates[candidates[0].error <= candidates[1].error ? 0 : 1];
}

}  // namespace moepack::MOEPACK_ISA
