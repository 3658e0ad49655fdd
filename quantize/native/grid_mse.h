// Least squares on grids: every row's scale, then each group's grid, then the nearest level to each weight.
#pragma once
#include <utility>

#include "book_search.h"
#include "grids.h"
#include "levels.h"
#include "step_search.h"

namespace moepack::MOEPACK_ISA {

// What a choice of levels costs, and what least squares needs to say of a better scale; sums over weights, in the row's
// unit, of: importance * error^2, importance * value * level, importance * level^2.
struct Outcome {
    double error = 0;
    double products = 0;
    double squares = 0;

    double better_scale() const { return squares > 0 ? products / squares : 0; }
};

// The nearest levels to the values of a group, and what they cost.
template <int bits, int size>
inline void assign_levels(const float* values, const float* importance, float scale, const Levels<bits>& levels,
                          uint8_t* codes, Outcome& outcome) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef int32_t Codes __attribute__((vector_size(32)));
    typedef uint8_t Bytes __attribute__((vector_size(8)));
    const float inverse = 1 / scale;
    Eight errors = {}, products = {}, squares = {};
    for (int i = 0; i < size; i += 8) {
        Eight value, counts, level = Eight{} + levels.levels[0];
        std::memcpy(&value, values + i, sizeof value), std::memcpy(&counts, importance + i, sizeof counts);
        const Eight scaled = value * inverse;
        Codes code = {};
        for (int k = 0; k < Levels<bits>::count - 1; k++) {
            const Codes above = scaled > levels.midpoints[k];
            level = above ? Eight{} + levels.levels[k + 1] : level;
            code -= above;
        }
        const Eight error = value - scale * level;
        errors += counts * (error * error);
        products += counts * (value * level);
        squares += counts * (level * level);
        const Bytes bytes = __builtin_convertvector(code, Bytes);
        std::memcpy(codes + i, &bytes, sizeof bytes);
    }
    outcome.error += double(joined(errors)), outcome.products += double(joined(products));
    outcome.squares += double(joined(squares));
}

// A row as it may be stored.
struct Attempt {
    int scale = 0;
    Outcome outcome;
    std::vector<uint8_t> codes;
    std::vector<uint8_t> grids;

    Attempt(int cols, int groups) : codes(size_t(cols)), grids(size_t(groups)) {}

    void clear() {
        scale = 0;
        std::memset(codes.data(), 0, codes.size());
        std::memset(grids.data(), 0, grids.size());
    }
};

// One row after the other.
template <typename Search, int bits, int size>
class GridQuantizer {
public:
    GridQuantizer(const GridTarget& target, int cols, const float* given)
        : target(target), cols(cols), importance(given, cols, size), row(cols),
          search(target.format.table, importance, cols), best(cols, cols / size), other(cols, cols / size) {
        for (int grid = 0; grid < 1 << target.format.grid_bits; grid++) {
            all_levels.emplace_back(target.format.table + (grid << bits));
            const float highest = all_levels.back().highest();
            highest_level = highest > highest_level ? highest : highest_level;
        }
    }

    // Whether every weight of the row is finite.
    bool quantize_row(const Source& source, int64_t index) {
        row.load(source, index * cols, importance);
        if (!row.finite) return false;
        if (row.power > 0) find_best(ScaleLadder(row.exponent, highest_level));
        if (!(row.power > 0) || !(best.outcome.error < row.power)) best.clear();
        store(index);
        return true;
    }

private:
    static constexpr int rounds = 2;  // of least squares after the search

    void find_best(const ScaleLadder& ladder) {
        attempt(ladder, search.best_scale(row, ladder), best);
        for (int round = 0; round < rounds; round++) {
            const int scale = ladder.nearest(best.outcome.better_scale());
            if (scale == best.scale) return;
            attempt(ladder, scale, other);
            if (!(other.outcome.error < best.outcome.error)) return;
            std::swap(best, other);
        }
    }

    void attempt(const ScaleLadder& ladder, int scale, Attempt& attempt) {
        attempt.scale = scale;
        attempt.outcome = {};
        const float value = ladder.value(scale);
        for (int first = 0; first < cols; first += size) {
            const float* values = &row.values[first];
            const uint8_t grid = search.best_grid(row, first / size, value);
            attempt.grids[first / size] = grid;
            assign_levels<bits, size>(values, &importance.relative[first], value, all_levels[grid],
                                      &attempt.codes[first], attempt.outcome);
        }
    }

    void store(int64_t index) {
        const int groups = cols / size, grid_bytes = groups * target.format.grid_bits / 8;
        const uint16_t scale = uint16_t(best.scale);
        pack(best.codes.data(), cols, bits, target.codes + index * (cols / 8) * bits);
        store_grids(target.format, best.grids.data(), groups, target.grids + index * grid_bytes);
        std::memcpy(target.scales + 2 * index, &scale, 2);
    }

    const GridTarget& target;
    int cols;
    Importance importance;
    Row row;
    Search search;
    Attempt best;
    Attempt other;
    std::vector<Levels<bits>> all_levels;
    float highest_level = 1;
};

template <typename Search, int bits, int size>
inline int64_t grid_mse(const Source& source, const GridTarget& target, int64_t rows, int cols, const float* given) {
    GridQuantizer<Search, bits, size> quantizer(target, cols, given);
    for (int64_t row = 0; row < rows; row++)
        if (!quantizer.quantize_row(source, row)) return row;
    return -1;
}

template <int bits>
inline int64_t grid_mse_of(const Source& source, const GridTarget& target, int64_t rows, int cols, const float* given) {
    const int size = target.format.group_size;
    if (target.format.grid_bits == 4 && size == 8)
        return grid_mse<BookSearch<bits, 8>, bits, 8>(source, target, rows, cols, given);
    if (target.format.grid_bits == 4) return grid_mse<BookSearch<bits, 16>, bits, 16>(source, target, rows, cols, given);
    if (size == 16) return grid_mse<StepSearch<bits, 16>, bits, 16>(source, target, rows, cols, given);
    return grid_mse<StepSearch<bits, 32>, bits, 32>(source, target, rows, cols, given);
}

// Returns the first row that holds a weight that is not finite, or -1.
inline int64_t quantize_grids(const Source& source, const GridTarget& target, int64_t rows, int cols,
                              const float* importance) {
    if (target.format.bits == 2) return grid_mse_of<2>(source, target, rows, cols, importance);
    return grid_mse_of<3>(source, target, rows, cols, importance);
}

}  // namespace moepack::MOEPACK_ISA
