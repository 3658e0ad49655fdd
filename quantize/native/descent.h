// Least squares by descent: from several starts, alternate nearest codes and the best grid for those codes.
#pragma once
#include "candidates.h"
#include "splits.h"

namespace moepack::MOEPACK_ISA {

constexpr int rounds = 3;       // of descent from each start; more gain nothing measurable
constexpr int start_bins = 24;  // resolution at which starts with four levels are searched
constexpr int start_classes = 4;

// One block of groups in units of their range (smallest weight 0, largest 1), weight by weight.
template <int size, bool weighted>
struct Block {
    Floats count;  // of each group: how much its weights count together
    Floats total;  // sum of its weights
    Floats weights[size];
    Floats shares[weighted ? size : 1];

    // What `value` contributes as, or of, weight i.
    Floats counted(int i, Floats value) const { return weighted ? shares[i] * value : value; }
};

// Nearest codes on the grid of `start`, then the least-squares grid for them; `start` again where they are all equal.
template <int size, bool weighted>
inline Fit refit(const Block<size, weighted>& block, const Fit& start, float top) {
    const Floats inverse = 1.0f / start.scale, zero = all(0), highest = all(top);
    Floats codes = zero, squares = zero, products = zero;
    for (int i = 0; i < size; i++) {
        const Floats quotient = (block.weights[i] - start.bias) * inverse;
        const Floats code = rounded(smaller(larger(quotient, zero), highest));
        const Floats counted = block.counted(i, code);
        codes += counted;
        squares += counted * code;
        products += counted * block.weights[i];
    }
    const Floats count = block.count;
    const Moments moments{codes, count * products - codes * block.total, count * squares - codes * codes};
    const Fit fit = least_squares(moments, block.total, count);
    const auto sound = (moments.covariance > 0) & (moments.variance > 0);
    return {sound ? fit.scale : start.scale, sound ? fit.bias : start.bias, fit.mean_code, sound ? fit.gain : zero};
}

inline Fit better(const Fit& a, const Fit& b) {
    const auto second = b.gain > a.gain;
    return {second ? b.scale : a.scale, second ? b.bias : a.bias, second ? b.mean_code : a.mean_code,
            second ? b.gain : a.gain};
}

template <int size, bool weighted>
inline Fit descend(const Block<size, weighted>& block, Fit fit, Fit best, float top) {
    for (int round = 0; round < rounds; round++) {
        fit = refit(block, fit, top);
        best = better(best, fit);
    }
    return best;
}

// Starts for any number of levels: the min-max grid with 0, 2/3 or 4/3 of a step cut off either end.
template <int size, bool weighted>
inline Fit descend_from_spans(const Block<size, weighted>& block, float top) {
    Fit best{all(0), all(0), all(0), all(0)};
    for (int low = 0; low < 3; low++)
        for (int high = 0; high < 3; high++) {
            const float cut_low = float(low) / (1.5f * top), cut_high = float(high) / (1.5f * top);
            const Fit start{all((1 - cut_low - cut_high) / top), all(cut_low), all(0), all(0)};
            best = descend(block, start, best, top);
        }
    return best;
}

// Sums per bin in the order of weights, then from the highest bin down.
template <int size, bool weighted>
inline void fill_tails(const Block<size, weighted>& block, Tails<start_bins>& tails) {
    float(&counts)[start_bins + 1][lanes] = reinterpret_cast<float(&)[start_bins + 1][lanes]>(tails.count);
    float(&sums)[start_bins + 1][lanes] = reinterpret_cast<float(&)[start_bins + 1][lanes]>(tails.sum);
    std::memset(&tails, 0, sizeof tails);
    for (int i = 0; i < size; i++)
        for (int lane = 0; lane < lanes; lane++) {
            const float weight = block.weights[i][lane];
            const int scaled = int(weight * float(start_bins)), bin = scaled < start_bins ? scaled : start_bins - 1;
            const float share = weighted ? block.shares[i][lane] : 1;
            counts[bin][lane] += share;
            sums[bin][lane] += share * weight;
        }
    for (int bin = start_bins - 1; bin >= 0; bin--) {
        tails.count[bin] += tails.count[bin + 1];
        tails.sum[bin] += tails.sum[bin + 1];
    }
}

// Starts for four levels: all splits of a coarse histogram, dealt into classes; the best of each class.
template <int size, bool weighted>
inline Fit descend_from_splits(const Block<size, weighted>& block) {
    Tails<start_bins> tails;
    fill_tails(block, tails);
    Fit best{all(0), all(0), all(0), all(0)};
    for (size_t start = 0; start < start_classes; start++)
        best = descend(block, best_split(tails, start, start_classes), best, 3);
    return best;
}

template <int size, bool weighted>
inline void fill_lane(Block<size, weighted>& block, int lane, const Weighted& group, const Extremes& range) {
    const float span = range.high - range.low, divisor = span > 0 ? span : 1;
    float *out = reinterpret_cast<float*>(block.weights) + lane, *shares = reinterpret_cast<float*>(block.shares) + lane;
    for (int i = 0; i < size; i++) out[i * lanes] = (group.values[i] - range.low) / divisor;
    for (int i = 0; i < size && weighted; i++) shares[i * lanes] = group.importance[i];
}

template <int size, bool weighted>
inline void sum_lanes(Block<size, weighted>& block) {
    block.count = block.total = all(0);
    for (int i = 0; i < size; i++) {
        block.count += block.counted(i, all(1));
        block.total += block.counted(i, block.weights[i]);
    }
}

template <int size, bool weighted>
inline UnitFit unit_fit(const Block<size, weighted>& block, const Fit& fit, int lane, const Extremes& range) {
    const double low = range.low, span = double(range.high) - low;
    return {low, span, fit.scale[lane], block.total[lane] / block.count[lane], fit.mean_code[lane]};
}

template <int size, bool weighted>
inline int64_t mse_by_descent(const Source& source, const Target& target, int64_t groups, const GroupShares& shares) {
    alignas(64) float weights[lanes][size];
    Extremes ranges[lanes];
    Candidate candidates[2];
    Block<size, weighted> block{};
    for (int64_t first = 0; first < groups; first += lanes) {
        const int used = groups - first < lanes ? int(groups - first) : lanes;
        for (int lane = 0; lane < used; lane++) {
            load_group(source, first + lane, size, weights[lane]);
            ranges[lane] = extremes<size>(weights[lane]);
            if (!ranges[lane].usable) return first + lane;
            fill_lane(block, lane, {weights[lane], shares.of(first + lane)}, ranges[lane]);
        }
        sum_lanes(block);
        const float top = float((1 << target.bits) - 1);
        const Fit fit = target.bits == 2 ? descend_from_splits(block) : descend_from_spans(block, top);
        for (int lane = 0; lane < used; lane++) {
            const Weighted group{weights[lane], shares.of(first + lane)};
            const StoredGrid stored = stored_fit(unit_fit(block, fit, lane, ranges[lane]));
            const Candidate& chosen = better_of<size>(group, ranges[lane], stored, target.bits, candidates);
            store<size>(target, first + lane, chosen.grid, chosen.codes);
        }
    }
    return -1;
}

}  // namespace moepack::MOEPACK_ISA
