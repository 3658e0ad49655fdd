// One row of weights made ready for a search: multiplied by a power of two so that the largest is at least 1 and below
// 2, which loses nothing and keeps every sum far from overflow and underflow.
#pragma once
#include "importance.h"

namespace moepack::MOEPACK_ISA {

inline double power_of_two(int exponent) { return std::bit_cast<double>(uint64_t(exponent + 1023) << 52); }

struct Row {
    std::vector<float> values;
    double power = 0;  // the weighted sum of their squares
    int exponent = 0;  // a weight is value * 2^exponent
    bool finite = true;

    explicit Row(int cols) : values(size_t(cols)) {}

    void load(const Source& source, int64_t first, const Importance& importance) {
        const int cols = int(values.size());
        if (source.values) load_floats(source.values, source.type, first, cols, values.data());
        else load_affine(source.affine, first, cols, values.data());
        const int32_t largest = largest_magnitude();
        finite = largest < 0x7f800000;
        if (finite && largest > 0) normalise(std::bit_cast<float>(largest));
        power = weighted_squares(importance);
    }

private:
    int32_t largest_magnitude() const {
        int32_t largest = 0;
        for (const float value : values) {
            const int32_t magnitude = std::bit_cast<int32_t>(value) & 0x7fffffff;
            largest = magnitude > largest ? magnitude : largest;
        }
        return largest;
    }

    void normalise(float largest) {
        exponent = int(std::bit_cast<uint64_t>(double(largest)) >> 52) - 1023;
        const double factor = power_of_two(-exponent);
        for (float& value : values) value = float(double(value) * factor);
    }

    double weighted_squares(const Importance& importance) const {
        double sums[8] = {};
        for (size_t i = 0; i < values.size(); i += 8)
            for (size_t part = 0; part < 8; part++) {
                const double value = values[i + part];
                sums[part] += double(importance.relative[i + part]) * (value * value);
            }
        return joined(sums);
    }
};

}  // namespace moepack::MOEPACK_ISA
