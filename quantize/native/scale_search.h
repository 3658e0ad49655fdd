// Searching a row's scale: a coarse look from far away, then down to the bottom of the valley, then every neighbour.
#pragma once
#include <utility>

#include "grid_row.h"
#include "floats.h"

namespace moepack::MOEPACK_ISA {

// A row's scale is named by the bits of its bfloat16: neighbours are one apart, whatever the magnitude.
struct ScaleLadder {
    int exponent;  // of the row
    int highest;   // the largest scale that keeps every product finite

    ScaleLadder(int exponent, float highest_level)
        : exponent(exponent), highest(bfloat16_truncated(0x1.fffffep127f / highest_level)) {}

    // In the row's own units.
    float value(int scale) const {
        return float(double(float_of_bfloat16(uint16_t(scale))) * power_of_two(-exponent));
    }

    int nearest(double value) const {
        const double wanted = value * power_of_two(exponent);
        return wanted < 0x1p127 ? clamped(bfloat16_nearest(float(wanted))) : highest;
    }

    int clamped(int scale) const { return scale < 1 ? 1 : scale > highest ? highest : scale; }
};

constexpr int octave = 128;

// How far apart scales are tried: closer where there are more levels, as the error is rougher then.
struct Strides {
    int rough;   // far from the valley
    int fine;    // in the valley, `reach` of them to either side at least; below that the error is rough
    int reach;
    int window;  // every scale so far from the bottom is tried
};

struct BestScale {
    int scale = 0;
    double error = __builtin_inf();

    void offer(int other, double its_error) {
        if (its_error < error) scale = other, error = its_error;
    }
};

template <typename Error>
inline int rough_scale(const ScaleLadder& ladder, int first, int last, int stride, const Error& error) {
    BestScale best;
    for (int scale = first; scale <= last; scale += stride)
        best.offer(ladder.clamped(scale), error(ladder.clamped(scale)));
    return best.scale;
}

// The best of the scales around `start`, ever further on the side where the best is the last.
template <typename Error>
inline int fine_scale(const ScaleLadder& ladder, int start, const Strides& strides, const Error& error) {
    BestScale best;
    int first = start - strides.reach * strides.fine, last = start + strides.reach * strides.fine;
    for (int scale = first; scale <= last; scale += strides.fine) best.offer(scale, error(ladder.clamped(scale)));
    while (best.scale == first) first -= strides.fine, best.offer(first, error(ladder.clamped(first)));
    while (best.scale == last) last += strides.fine, best.offer(last, error(ladder.clamped(last)));
    for (int away = 1; away <= strides.window; away++)
        for (int scale : {best.scale - away, best.scale + away}) best.offer(scale, error(ladder.clamped(scale)));
    return ladder.clamped(best.scale);
}

}  // namespace moepack::MOEPACK_ISA
