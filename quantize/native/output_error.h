// The error of a layer's output: the sum over rows of d H d', with d a row of weight errors.
#pragma once
#include <vector>

#include "feedback.h"

namespace moepack::MOEPACK_ISA {

// H is symmetric: what lies above its diagonal counts twice, what lies below is not read.
class OutputError {
public:
    OutputError(const float* differences, int64_t rows, int64_t cols)
        : cols(cols), tiles(size_t((rows + tile_rows - 1) / tile_rows * cols)) {
        for (int64_t row = 0; row < rows; row++)
            for (int64_t j = 0; j < cols; j++)
                tile(row / tile_rows)[j].rows[row % tile_rows] = differences[row * cols + j];
    }

    double under(const float* hessian) {
        double total = 0;
        for (int64_t first = 0; first < cols; first += side) {
            const int count = int(cols - first < side ? cols - first : side);
            const std::vector<float> panel = panel_of(hessian, first, count);
            for (int64_t t = 0; t * cols < int64_t(tiles.size()); t++)
                total += of_panel(panel.data(), tile(t), first, count);
        }
        return total;
    }

private:
    Column* tile(int64_t index) { return &tiles[size_t(index * cols)]; }

    // Columns first .. of the Hessian down to the diagonal, as rows of 64; the diagonal halved, zero below it.
    std::vector<float> panel_of(const float* hessian, int64_t first, int count) const {
        std::vector<float> panel(size_t((first + count) * side));
        for (int64_t k = 0; k < first + count; k++)
            for (int c = 0; c < count; c++) {
                const float value = hessian[k * cols + first + c];
                panel[size_t(k * side + c)] = k < first + c ? value : k == first + c ? value / 2 : 0;
            }
        return panel;
    }

    static double of_panel(const float* panel, const Column* tile, int64_t first, int count) {
        Column products[side] = {};
        subtract_products(panel, tile->rows, first + count, count, products->rows);
        double sums[tile_rows] = {}, total = 0;
        for (int c = 0; c < count; c++)
            for (int r = 0; r < tile_rows; r++)
                sums[r] -= 2 * double(products[c].rows[r]) * double(tile[first + c].rows[r]);
        for (const double sum : sums) total += sum;
        return total;
    }

    int64_t cols;
    std::vector<Column> tiles;  // [row / 64, cols]
};

inline double output_error(const float* differences, int64_t rows, int64_t cols, const float* hessian) {
    return OutputError(differences, rows, cols).under(hessian);
}

}  // namespace moepack::MOEPACK_ISA
