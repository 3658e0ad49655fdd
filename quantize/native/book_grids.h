// Codebooks: the book of one group. All books are one shelf.
#pragma once
#include "distances.h"

namespace moepack::MOEPACK_ISA {

template <int bits, int size>
class BookGrids {
public:
    explicit BookGrids(const int16_t* table) : distances(table, 1 << bits, 0, 1) {}

    // Of the group whose weights are `values`, in the unit of `scale`, and count as `shares`.
    uint8_t best_grid(const float* values, const float* shares, float scale) const {
        int32_t rows[size];
        distances.find_rows(values, size, 1 / scale, rows);
        const Shelf sums = distances.template sums<size>(rows, shares);
        return uint8_t(sums.first_of(sums.least()));
    }

    const Distances distances;
};

}  // namespace moepack::MOEPACK_ISA
