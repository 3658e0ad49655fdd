// Error feedback (E. Frantar et al., GPTQ, arXiv 2210.17323): columns are quantized from left to right, and what a
// column loses is made up for by those after it. `factor.h` says what a column wants to be and how much it counts.
//
// 64 rows at a time, column by column: row r of a tile is element r of every column, so rows never mix.
#pragma once
#include <vector>

#include "grid_row.h"
#include "products.h"

namespace moepack::MOEPACK_ISA {

constexpr int tile_rows = side;

struct alignas(64) Column {
    float rows[tile_rows];
};

// Sixty-four rows of weights, each multiplied by the power of two that brings its largest weight to between 1 and 2:
// exact, and whatever is fed back stays far from overflow. Rows that are missing are zero.
struct Tile {
    std::vector<Column> columns;
    double units[tile_rows];  // what a row's numbers are to be multiplied by

    explicit Tile(int64_t cols) : columns(size_t(cols)) {}

    void load(const float* weights, int64_t cols, int used) {
        for (int r = 0; r < tile_rows; r++) {
            const float* row = weights + (r < used ? r : 0) * cols;
            units[r] = r < used ? unit_of(row, cols) : 1;
            const double factor = r < used ? 1 / units[r] : 0;
            for (int64_t j = 0; j < cols; j++) columns[size_t(j)].rows[r] = float(double(row[j]) * factor);
        }
    }

private:
    static double unit_of(const float* row, int64_t cols) {
        uint32_t largest = 0;
        for (int64_t j = 0; j < cols; j++) {
            const uint32_t magnitude = std::bit_cast<uint32_t>(row[j]) & 0x7fffffff;
            largest = magnitude > largest ? magnitude : largest;
        }
        if (largest == 0) return 1;
        return power_of_two(int(std::bit_cast<uint64_t>(double(std::bit_cast<float>(largest))) >> 52) - 1023);
    }
};

// The columns of a tile after what the columns before them lost has been added, a stretch of whole groups at a time.
class Wanted {
public:
    Wanted(const Feedback& feedback, const Tile& tile, int64_t cols, int stretch)
        : coefficients{feedback.coefficients}, tile(tile), surplus(size_t(cols)),
          columns(size_t(stretch)), expected(size_t(stretch)), moved(size_t(stretch)) {}

    // Columns first .. first + count - 1, made up for all columns before them; `count` is a multiple of 8.
    void begin(int64_t first, int count) {
        start = first;
        for (int c = 0; c < count; c++) columns[c] = tile.columns[size_t(first + c)];
        add(0, first, first, count);
    }

    // Makes up for the columns from the stretch's start on that come before a group.
    Column* group(int64_t first, int count) {
        add(start, first, first, count);
        return &columns[size_t(first - start)];
    }

    // What a group's columns would become if each could be just what it wants when its turn comes. It is not what they
    // want now, since each that moves makes those after it move too. Grids are chosen for this. [count]
    const Column* outlook(int64_t first, int count) {
        for (int i = 0; i < count; i++) {
            Column& column = expected[size_t(i)];
            column = columns[size_t(first - start + i)];
            for (int k = 0; k < i; k++) feed(moved[size_t(k)], first + k, first + i, column);
            subtract(column, tile.columns[size_t(first + i)], moved[size_t(i)]);
        }
        return expected.data();
    }

    // Column j has become `quantized`; the later columns of its group, up to `end`, learn of it.
    void settle(int64_t j, const Column& quantized, int64_t end) {
        subtract(quantized, tile.columns[size_t(j)], surplus[size_t(j)]);
        for (int64_t later = j + 1; later < end; later++)
            feed(surplus[size_t(j)], j, later, columns[size_t(later - start)]);
    }

private:
    // The coefficient of column k for column j; those for the columns after j follow, up to a multiple of 64.
    const float* coefficient(int64_t k, int64_t j) const {
        return coefficients.block(0, j / side) + k * side + j % side;
    }

    static void subtract(const Column& left, const Column& right, Column& difference) {
        for (int r = 0; r < tile_rows; r++) difference.rows[r] = left.rows[r] - right.rows[r];
    }

    // Column k is too large by `moved`: column j makes up for it.
    void feed(const Column& moved, int64_t k, int64_t j, Column& column) const {
        const float factor = *coefficient(k, j);
        for (int r = 0; r < tile_rows; r++) column.rows[r] -= factor * moved.rows[r];
    }

    void add(int64_t from, int64_t until, int64_t first, int count) {
        for (int64_t j = first; j < first + count; j += side - j % side) {
            const int64_t left = first + count - j, room = side - j % side;
            subtract_products(coefficient(from, j), surplus[size_t(from)].rows, until - from,
                              int(left < room ? left : room), columns[size_t(j - start)].rows);
        }
    }

    Panels<const float> coefficients;
    const Tile& tile;
    std::vector<Column> surplus;  // quantized minus original weights
    std::vector<Column> columns;
    std::vector<Column> expected;
    std::vector<Column> moved;  // expected minus original weights
    int64_t start = 0;
};

// `Grids` chooses a group's grid per row (choose), puts a column on it (code) and stores the tile (store).
template <typename Grids>
inline void feed_back(const Feedback& feedback, const float* weights, int64_t rows, int64_t cols, Grids& grids) {
    constexpr int size = Grids::size, stretch = size > side ? size : side;
    Tile tile(cols);
    Wanted wanted(feedback, tile, cols, stretch);
    std::vector<uint8_t> codes(size_t(cols) * tile_rows);
    Column quantized;
    for (int64_t row = 0; row < rows; row += tile_rows) {
        const int used = rows - row < tile_rows ? int(rows - row) : tile_rows;
        tile.load(weights + row * cols, cols, used);
        grids.begin(tile, row, used);
        for (int64_t first = 0; first < cols; first += size) {
            if (first % stretch == 0) wanted.begin(first, int(cols - first < stretch ? cols - first : stretch));
            const Column* group = wanted.group(first, size);
            grids.choose(wanted.outlook(first, size), first);
            for (int i = 0; i < size; i++) {
                grids.code(group[i], quantized, &codes[size_t(first + i) * tile_rows]);
                wanted.settle(first + i, quantized, first + size);
            }
        }
        grids.store(codes.data(), row, used);
    }
}

// Packs the codes [cols, 64] of a tile row by row.
inline void pack_rows(const uint8_t* codes, int64_t cols, int bits, int used, uint8_t* target) {
    std::vector<uint8_t> row(static_cast<size_t>(cols));
    for (int r = 0; r < used; r++) {
        for (int64_t j = 0; j < cols; j++) row[size_t(j)] = codes[j * tile_rows + r];
        pack(row.data(), int(cols), bits, target + r * (cols / 8 * bits));
    }
}

}  // namespace moepack::MOEPACK_ISA
