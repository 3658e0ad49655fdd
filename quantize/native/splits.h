// Complete search over the ways of splitting a group's histogram into four levels.
//
// A split (a, b, c) puts the bins below a on level 0, those below b on level 1, below c on level 2, the rest on 3.
// Nearest codes on a grid have equally spaced thresholds, and the least-squares optimum has nearest codes, so it is
// among the splits whose thresholds can be equally spaced (one may lie outside the histogram). Of splits that differ
// in the names of their levels only, such as levels 0 and 2 for 0 and 1, one is kept: 259 of 16 bins.
#pragma once
#include <array>

#include "lanes.h"

namespace moepack::MOEPACK_ISA {

struct Split {
    uint8_t a, b, c;
};

constexpr bool equally_spaced(int bins, int a, int b, int c) {
    const int inner = b - a, outer = c - b;
    if (c < bins) return inner - outer <= 1 && outer - inner <= 1;
    const bool last_outside = inner + 1 >= outer;  // or the first threshold is outside and levels are named one less
    return last_outside || inner >= a - 1;
}

constexpr bool first_of_its_names(int bins, int a, int b, int c) { return a < b || (b < c && c < bins); }

template <typename Visit>
constexpr void visit_splits(int bins, Visit visit) {
    for (int a = 1; a < bins; a++)
        for (int b = a; b <= bins; b++)
            for (int c = b; c <= bins; c++)
                if (first_of_its_names(bins, a, b, c) && equally_spaced(bins, a, b, c)) visit(a, b, c);
}

template <int bins>
constexpr auto all_splits() {
    constexpr size_t count = [] {
        size_t found = 0;
        visit_splits(bins, [&](int, int, int) { found++; });
        return found;
    }();
    std::array<Split, count> splits{};
    size_t next = 0;
    visit_splits(bins, [&](int a, int b, int c) { splits[next++] = {uint8_t(a), uint8_t(b), uint8_t(c)}; });
    return splits;
}

// Per lane, how much the weights in bin t and above count, and their sum. Of bin 0: the whole group.
template <int bins>
struct Tails {
    Floats count[bins + 1];
    Floats sum[bins + 1];
};

// A grid per lane and what its codes explain: gain is the part of the sum of squares that the fit removes, times the
// number of weights.
struct Fit {
    Floats scale;
    Floats bias;
    Floats mean_code;
    Floats gain;
};

// What least squares needs of a choice of codes.
struct Moments {
    Floats codes;       // sum of codes
    Floats covariance;  // of codes and weights, times the squared number of weights
    Floats variance;    // of codes, likewise
};

// scale = cov(code, weight) / var(code), bias = mean weight - scale * mean code, gain = cov^2 / var.
inline Fit least_squares(const Moments& moments, Floats total, Floats count) {
    const Floats scale = moments.covariance / moments.variance;
    return {scale, (total - scale * moments.codes) / count, moments.codes / count, moments.covariance * scale};
}

template <int bins>
inline Moments moments_of(const Tails<bins>& tails, const Split& split) {
    const auto [a, b, c] = split;
    const Floats codes = tails.count[a] + tails.count[b] + tails.count[c];
    const Floats squares = tails.count[a] + 3.0f * tails.count[b] + 5.0f * tails.count[c];
    const Floats products = tails.sum[a] + tails.sum[b] + tails.sum[c];
    const Floats count = tails.count[0];
    return {codes, count * products - codes * tails.sum[0], count * squares - codes * codes};
}

// The split of greatest gain among every step-th one from `first` on; the earliest of equals. A scale of 0 where none
// gains anything.
template <int bins>
inline Fit best_split(const Tails<bins>& tails, size_t first, size_t step) {
    static constexpr auto splits = all_splits<bins>();
    Moments best{all(0), all(0), all(1)};
    Floats best_square = all(0);
    for (size_t i = first; i < splits.size(); i += step) {
        const Moments moments = moments_of(tails, splits[i]);
        const Floats square = moments.covariance * moments.covariance;
        const auto wins = square * best.variance > best_square * moments.variance;
        best = {wins ? moments.codes : best.codes, wins ? moments.covariance : best.covariance,
                wins ? moments.variance : best.variance};
        best_square = wins ? square : best_square;
    }
    return least_squares(best, tails.sum[0], tails.count[0]);
}

}  // namespace moepack::MOEPACK_ISA
