// Error feedback on grids of integer levels: rows keep the scale they are given, groups get the grid of least weighted
// error for what their weights have become.
#pragma once
#include "book_grids.h"
#include "feedback.h"
#include "grids.h"
#include "levels.h"
#include "step_grids.h"

namespace moepack::MOEPACK_ISA {

template <typename Family, int bits, int group_size>
class GridFeedback {
public:
    static constexpr int size = group_size;

    // target.scales, one bfloat16 per row, are given; codes and grids are written.
    GridFeedback(const GridTarget& target, const Importance& importance, int64_t cols)
        : target(target), importance(importance), cols(cols),
          family(target.format.table), grids(size_t(cols / size) * tile_rows) {
        for (int grid = 0; grid < 1 << target.format.grid_bits; grid++)
            all_levels.emplace_back(target.format.table + (grid << bits));
    }

    void begin(const Tile& tile, int64_t row, int used) {
        for (int r = 0; r < tile_rows; r++) {
            const float stored = r < used ? load_float(target.scales, FloatType::bfloat16, row + r) : 0;
            scales.rows[r] = float(double(stored) / tile.units[r]);
            divisors.rows[r] = scales.rows[r] > 0 ? scales.rows[r] : __builtin_inff();
        }
    }

    void choose(const Column* group, int64_t first) {
        alignas(64) float values[size];
        for (int r = 0; r < tile_rows; r++) {
            for (int i = 0; i < size; i++) values[i] = group[i].rows[r];
            const bool any = scales.rows[r] > 0;
            const uint8_t grid = any ? family.best_grid(values, &importance.shares[size_t(first)], scales.rows[r]) : 0;
            grids[size_t(r) * size_t(cols / size) + size_t(first / size)] = grid;
            const Levels<bits>& levels = all_levels[grid];
            for (int k = 0; k < count; k++) chosen[k].rows[r] = levels.levels[k];
            for (int k = 0; k < count - 1; k++) midpoints[k].rows[r] = levels.midpoints[k];
        }
    }

    // The nearest level; rows without a scale have level times zero.
    void code(const Column& wanted, Column& quantized, uint8_t* codes) const {
        for (int r = 0; r < tile_rows; r++) {
            const float value = wanted.rows[r] / divisors.rows[r];
            float level = chosen[0].rows[r];
            int32_t code = 0;
            for (int k = 0; k < count - 1; k++) {
                const bool above = value > midpoints[k].rows[r];
                level = above ? chosen[k + 1].rows[r] : level;
                code += above;
            }
            quantized.rows[r] = level * scales.rows[r];
            codes[r] = uint8_t(code);
        }
    }

    void store(uint8_t* codes, int64_t row, int used) {
        const int64_t groups = cols / size, bytes = groups * target.format.grid_bits / 8;
        for (int r = 0; r < used; r++) {
            if (scales.rows[r] == 0) erase(codes, r);
            store_grids(target.format, &grids[size_t(r * groups)], int(groups), target.grids + (row + r) * bytes);
        }
        pack_rows(codes, cols, bits, used, target.codes + row * (cols / 8 * bits));
    }

private:
    static constexpr int count = 1 << bits;

    void erase(uint8_t* codes, int r) const {
        for (int64_t j = 0; j < cols; j++) codes[j * tile_rows + r] = 0;
    }

    GridTarget target;
    const Importance& importance;
    int64_t cols;
    Family family;
    std::vector<Levels<bits>> all_levels;
    std::vector<uint8_t> grids;  // [64, groups]
    Column scales;
    Column divisors;  // the scales, but infinite where they are zero
    Column chosen[count];
    Column midpoints[count - 1];
};

}  // namespace moepack::MOEPACK_ISA
