// The reference system's rule: a grid from the smallest to the largest weight of a group.
#pragma once
#include "groups.h"

namespace moepack::MOEPACK_ISA {

// scale and bias of a group before they are stored.
struct Grid {
    float scale;
    float bias;
};

// scale and bias as stored, in bfloat16.
struct StoredGrid {
    uint16_t scale;
    uint16_t bias;
    Grid values() const { return {float_of_bfloat16(scale), float_of_bfloat16(bias)}; }
};

struct Extremes {
    float low;
    float high;
    bool usable;  // every weight is finite and so is high - low
};

// An integer that orders floats totally: -0.0 below +0.0, NaNs outside the infinities. Its own inverse.
inline int32_t ordered(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

template <int count>
inline Extremes extremes(const float* weights) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (int i = 0; i < count; i++) {
        const int32_t key = ordered(std::bit_cast<int32_t>(weights[i]));
        low = key < low ? key : low;
        high = key > high ? key : high;
    }
    const float least = std::bit_cast<float>(ordered(low)), most = std::bit_cast<float>(ordered(high));
    constexpr int32_t infinity = 0x7f800000;
    const bool finite = high < infinity && low > ordered(int32_t(0xff800000));
    return {least, most, finite && std::bit_cast<int32_t>(most - least) < infinity};
}

inline Grid minmax_grid(const Extremes& range, int bits) {
    return {(range.high - range.low) / float((1 << bits) - 1), range.low};
}

inline StoredGrid truncated(const Grid& grid) { return {bfloat16_truncated(grid.scale), bfloat16_truncated(grid.bias)}; }

// code = clamp(rint((weight - bias) / scale)), ties to even; all codes are 0 when the scale is.
// After clamping, adding 2^23 leaves the rounded quotient in the low bits: rint without a library call.
template <int count>
inline void assign_codes(const float* weights, const Grid& grid, int bits, uint8_t* codes) {
    const float top = float((1 << bits) - 1);
    if (grid.scale == 0) {
        std::memset(codes, 0, count);
        return;
    }
    for (int i = 0; i < count; i++) {
        float quotient = (weights[i] - grid.bias) / grid.scale;
        quotient = quotient > 0 ? quotient : 0;
        quotient = quotient < top ? quotient : top;
        codes[i] = uint8_t(std::bit_cast<uint32_t>(quotient + 0x1p23f));
    }
}

template <int size>
inline void store(const Target& target, int64_t group, const StoredGrid& grid, const uint8_t* codes) {
    pack(codes, size, target.bits, target.codes + group * (size / 8) * target.bits);
    std::memcpy(target.scales + 2 * group, &grid.scale, 2);
    std::memcpy(target.biases + 2 * group, &grid.bias, 2);
}

template <int size>
inline int64_t minmax(const Source& source, const Target& target, int64_t groups) {
    alignas(64) float weights[size];
    alignas(64) uint8_t codes[size];
    for (int64_t group = 0; group < groups; group++) {
        load_group(source, group, size, weights);
        const Extremes range = extremes<size>(weights);
        if (!range.usable) return group;
        const Grid grid = minmax_grid(range, target.bits);
        assign_codes<size>(weights, grid, target.bits, codes);
        store<size>(target, group, truncated(grid), codes);
    }
    return -1;
}

}  // namespace moepack::MOEPACK_ISA
