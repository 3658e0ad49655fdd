// How much each weight of a row counts; the same for every row of a matrix.
#pragma once
#include <utility>
#include <vector>

#include "groups.h"

namespace moepack::MOEPACK_ISA {

// Eight partial sums, joined pairwise: a fixed order, whatever the width of vectors.
template <typename Sums>
inline auto joined(const Sums& sums) {
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

template <int size>
inline float sum_of(const float (&terms)[size]) {
    float sums[8] = {};
    for (int i = 0; i < size; i += 8)
        for (int part = 0; part < 8; part++) sums[part] += terms[i + part];
    return joined(sums);
}

struct Importance {
    std::vector<float> shares;    // of each weight, relative to the largest of its group: that one has 1
    std::vector<float> weights;   // of each group's largest, relative to the row's
    std::vector<float> relative;  // share * weight
    double total = 0;             // of `relative`

    // `given` has one number per input, or is nullptr: all count the same, as the weights of a group without any do.
    Importance(const float* given, int cols, int size)
        : shares(size_t(cols), 1), weights(size_t(cols / size), 1), relative(size_t(cols)) {
        const float most = given ? largest(given, cols) : 0;
        for (int group = 0; group < cols / size && most > 0; group++) take(given + group * size, group, size, most);
        for (int i = 0; i < cols; i++) {
            relative[i] = shares[i] * weights[i / size];
            total += double(relative[i]);
        }
    }

private:
    static float largest(const float* values, int count) {
        float found = 0;
        for (int i = 0; i < count; i++) found = values[i] > found ? values[i] : found;
        return found;
    }

    void take(const float* values, int group, int size, float most) {
        const float mine = largest(values, size);
        weights[group] = mine / most;
        for (int i = 0; i < size && mine > 0; i++) shares[group * size + i] = values[i] / mine;
    }
};

}  // namespace moepack::MOEPACK_ISA
