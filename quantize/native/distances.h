// Squared distances from a value to the nearest level of sixteen grids at once, looked up instead of computed.
//
// A value in units of its scale is rounded to a row of a table whose sixteen columns are grids. The rounding's effect
// averages out over a group: good enough to choose a grid and a scale by. Codes are chosen with the exact values.
#pragma once
#include <cmath>
#include <vector>

#include "floats.h"
#include "lanes.h"

namespace moepack::MOEPACK_ISA {

constexpr int shelf = 16;        // grids side by side: codebooks, or the zeros of one step
constexpr int half_rows = 1024;  // of the table, for values on either side of zero

// One value per grid of a shelf.
struct Shelf {
    Floats parts[shelf / lanes];

    float& operator[](int i) { return reinterpret_cast<float*>(parts)[i]; }
    float operator[](int i) const { return reinterpret_cast<const float*>(parts)[i]; }

    float least() const {
        Floats least = parts[0];
        for (int part = 1; part < shelf / lanes; part++) least = smaller(least, parts[part]);
        return least_of(least);
    }

    // The first place of a value that is there.
    int first_of(float value) const {
        static constexpr float places[shelf] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        Shelf found;
        std::memcpy(found.parts, places, sizeof found.parts);
        for (int part = 0; part < shelf / lanes; part++)
            found.parts[part] = parts[part] == value ? found.parts[part] : all(shelf - 1);
        return int(found.least());
    }
};

class Distances {
public:
    // Of the grids `first`, `first + step`, ... of a table with `levels` ascending levels each.
    Distances(const int16_t* table, int levels, int first, int step) : rows(2 * half_rows + 1) {
        for (int grid = 0; grid < shelf; grid++) measure(table + (first + grid * step) * levels, levels);
        while (reach_ < 2 * highest_level_) reach_ *= 2;
        for (int grid = 0; grid < shelf; grid++) fill(grid, table + (first + grid * step) * levels, levels);
    }

    int reach() const { return reach_; }  // values within are told apart
    int highest_level() const { return highest_level_; }
    double typical_level() const { return std::sqrt(squares / count); }

    // Which row stands for each value * inverse; those out of reach are taken as the last within. Eight at a time.
    void find_rows(const float* values, int count, float inverse, int32_t* found) const {
        typedef int32_t Rows __attribute__((vector_size(32)));
        const float per_unit = inverse * (float(half_rows) / float(reach_));
        const Eight last = Eight{} + float(half_rows);
        for (int i = 0; i < count; i += 8) {
            Eight row;
            std::memcpy(&row, values + i, sizeof row);
            row *= per_unit;
            row = row > -last ? row : -last;
            row = row < last ? row : last;
            const Rows rows = Rows(row + 0x1.8p23f) - (std::bit_cast<int32_t>(0x1.8p23f) - half_rows);
            std::memcpy(found + i, &rows, sizeof rows);
        }
    }

    // Per grid, the weighted sum of squared distances of a group, in the order of its weights.
    template <int size>
    Shelf sums(const int32_t* found, const float* importance) const {
        Shelf total{};
        for (int i = 0; i < size; i++) {
            const Shelf& row = rows[size_t(found[i])];
            for (int part = 0; part < shelf / lanes; part++) total.parts[part] += importance[i] * row.parts[part];
        }
        return total;
    }

private:
    void measure(const int16_t* grid, int levels) {
        for (int i = 0; i < levels; i++) {
            const int magnitude = grid[i] < 0 ? -grid[i] : grid[i];
            highest_level_ = magnitude > highest_level_ ? magnitude : highest_level_;
            squares += magnitude * magnitude;
            count++;
        }
    }

    void fill(int column, const int16_t* grid, int levels) {
        const float unit = float(reach_) / float(half_rows);
        for (int row = 0; row <= 2 * half_rows; row++) {
            float least = __builtin_inff();
            for (int i = 0; i < levels; i++) {
                const float distance = float(row - half_rows) * unit - float(grid[i]);
                least = distance * distance < least ? distance * distance : least;
            }
            rows[size_t(row)][column] = least;
        }
    }

    std::vector<Shelf> rows;
    int reach_ = 1;
    int highest_level_ = 1;
    double squares = 0;
    double count = 0;
};

}  // namespace moepack::MOEPACK_ISA
