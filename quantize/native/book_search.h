// Codebooks: the row's scale and each group's book of least weighted squared error.
#pragma once
#include "book_grids.h"
#include "scale_search.h"

namespace moepack::MOEPACK_ISA {

template <int bits, int size>
class BookSearch {
public:
    BookSearch(const int16_t* table, const Importance& importance, int cols)
        : grids(table), distances(grids.distances), importance(importance), cols(cols), found(size_t(cols)) {}

    int best_scale(const Row& row, const ScaleLadder& ladder) {
        const int every = cols > sample ? cols / sample : 1;
        const int typical = ladder.nearest(std::sqrt(row.power / importance.total) / distances.typical_level());
        const auto roughly = [&](int scale) { return error(row, ladder.value(scale), every); };
        const auto exactly = [&](int scale) { return error(row, ladder.value(scale), 1); };
        const int first = typical - 3 * octave / 4, last = typical + 5 * octave / 4;
        const int start = rough_scale(ladder, first, last, strides.rough, roughly);
        return fine_scale(ladder, start, strides, exactly);
    }

    uint8_t best_grid(const Row& row, int group, float scale) const {
        const int first = group * size;
        return grids.best_grid(&row.values[first], &importance.shares[first], scale);
    }

private:
    static constexpr Strides strides = bits == 2 ? Strides{octave / 4, 12, 1, 4} : Strides{octave / 8, 8, 4, 3};
    static constexpr int block = 16 * size;
    static constexpr int sample = 1024;  // weights that a rough look needs at least

    // Weighted squared error in the row's unit, of every so-manieth block of groups, with the best book for each group.
    double error(const Row& row, float scale, int every) {
        const float inverse = 1 / scale;
        double total = 2 * inverse > float(distances.reach()) ? outside(row, inverse, every) : 0;
        for (int first = 0; first < cols; first += block * every) {
            const int end = first + block < cols ? first + block : cols;
            distances.find_rows(&row.values[first], end - first, inverse, found.data());
            for (int i = first; i < end; i += size) {
                const Shelf sums = distances.sums<size>(&found[i - first], &importance.shares[i]);
                total += double(importance.weights[i / size] * sums.least());
            }
        }
        return total * (double(scale) * double(scale));
    }

    // By how much the error of values out of the table's reach is larger than the table says.
    double outside(const Row& row, float inverse, int every) const {
        const double reach = distances.reach(), margin = 2 * (reach - distances.highest_level());
        double total = 0;
        for (int first = 0; first < cols; first += block * every)
            for (int i = first; i < first + block && i < cols; i++) {
                const double over = double(__builtin_fabsf(row.values[i] * inverse)) - reach;
                if (over > 0) total += double(importance.relative[i]) * (over * (over + margin));
            }
        return total;
    }

    const BookGrids<bits, size> grids;
    const Distances& distances;
    const Importance& importance;
    int cols;
    std::vector<int32_t> found;
};

}  // namespace moepack::MOEPACK_ISA
