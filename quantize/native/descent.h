// Least squares by descent: from several starts, alternate nearest codes and the best grid for those codes.
#pragma once
#include "candidates.h"
#include "lanes.h"

namespace moepack::MOEPACK_ISA {

// One block of groups in unit range, weight by weight: weights[i][lane].
struct Block {
    int size;
    Floats total;  // sum of each group's weights
    Floats weights[max_group_size];
};

// A grid per lane with what its codes explain: of a group's sum of squares, gain is the part that the fit removes.
struct Fit {
    Floats scale;
    Floats bias;
    Floats mean_code;
    Floats gain;
};

// Nearest codes on the grid of `start`, then the least-squares grid for these codes:
// scale = cov(code, weight) / var(code), bias = mean weight - scale * mean code, gain = cov^2 / var.
inline Fit refit(const Block& block, const Fit& start, float top) {
    const Floats inverse = 1.0f / start.scale, zero = all(0), highest = all(top);
    Floats codes = zero, squares = zero, products = zero;
    for (int i = 0; i < block.size; i++) {
        const Floats quotient = (block.weights[i] - start.bias) * inverse;
        const Floats code = rounded(smaller(larger(quotient, zero), highest));
        codes += code;
        squares += code * code;
        products += code * block.weights[i];
    }
    const float count = float(block.size);
    const Floats covariance = count * products - codes * block.total;
    const Floats variance = count * squares - codes * codes;
    const auto sound = (covariance > 0) & (variance > 0);
    const Floats scale = sound ? covariance / variance : start.scale;
    const Floats gain = sound ? covariance * (covariance / variance) : zero;
    return {scale, (block.total - scale * codes) / count, codes / count, gain};
}

inline Fit better(const Fit& a, const Fit& b) {
    const auto second = b.gain > a.gain;
    return {second ? b.scale : a.scale, second ? b.bias : a.bias, second ? b.mean_code : a.mean_code,
            second ? b.gain : a.gain};
}

// The min-max grid shrunken to `share` of its span around the middle of the range.
inline Fit shrunken_start(float share, float top) {
    return {all(share / top), all((1 - share) / 2), all(0), all(0)};
}

inline Fit descend(const Block& block, float top) {
    constexpr float shares[] = {1.0f, 0.85f, 0.7f, 0.55f};
    Fit best = shrunken_start(1, top);
    for (const float share : shares) {
        Fit fit = shrunken_start(share, top);
        for (int round = 0; round < 6; round++) best = better(best, fit = refit(block, fit, top));
    }
    return best;
}

inline void fill_lane(Block& block, int lane, const float* weights, const Extremes& range) {
    const float span = range.high - range.low, divisor = span > 0 ? span : 1;
    float* values = reinterpret_cast<float*>(block.weights) + lane;
    for (int i = 0; i < block.size; i++) values[i * lanes] = (weights[i] - range.low) / divisor;
}

inline void sum_lanes(Block& block) {
    block.total = all(0);
    for (int i = 0; i < block.size; i++) block.total += block.weights[i];
}

inline int64_t mse_by_descent(const Source& source, const Target& target, int64_t groups) {
    alignas(64) float weights[lanes][max_group_size];
    Extremes ranges[lanes];
    Block block{target.group_size, {}, {}};
    const float top = float((1 << target.bits) - 1);
    for (int64_t first = 0; first < groups; first += lanes) {
        const int used = groups - first < lanes ? int(groups - first) : lanes;
        for (int lane = 0; lane < used; lane++) {
            load_group(source, first + lane, block.size, weights[lane]);
            ranges[lane] = extremes(weights[lane], block.size);
            if (!ranges[lane].usable) return first + lane;
            fill_lane(block, lane, weights[lane], ranges[lane]);
        }
        sum_lanes(block);
        const Fit fit = descend(block, top);
        for (int lane = 0; lane < used; lane++) {
            const UnitFit unit{fit.scale[lane], block.total[lane] / float(block.size), fit.mean_code[lane]};
            store_better(target, first + lane, weights[lane], ranges[lane], stored_fit(unit, ranges[lane]));
        }
    }
    return -1;
}

}  // namespace moepack::MOEPACK_ISA
