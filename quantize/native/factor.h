// What error feedback needs of a Hessian H: R with H = R R', R zero below its diagonal, by blocked Cholesky in float64.
//
// With d = w - q the output error of a row is d H d', the sum over j of R_jj^2 (d_j + sum_{k < j} d_k R_kj / R_jj)^2.
// So column j, quantized after the columns before it, wants w_j + sum_{k < j} d_k R_kj / R_jj, and counts R_jj^2.
#pragma once
#include <cmath>
#include <vector>

#include "products.h"

namespace moepack::MOEPACK_ISA {

// Works on H with rows and columns reversed, M = T' T: T is R' reversed. Columns that fill up the last block come first
// there; they are unit vectors and touch nothing.
class Cholesky {
public:
    explicit Cholesky(int64_t cols)
        : cols(cols), blocks((cols + side - 1) / side), storage(size_t(Panels<double>::size(blocks))) {}

    FactorResult run(const float* hessian, double damping, float* coefficients, float* importance) {
        if (!load(hessian, damping)) return FactorResult::not_finite;
        for (int64_t panel = 0; panel < blocks; panel++)
            for (int64_t row = 0; row <= panel; row++)
                if (!eliminate(row, panel)) return FactorResult::indefinite;
        for (int64_t panel = 0; panel < blocks; panel++)
            for (int64_t row = 0; row <= panel; row++) write_coefficients(row, panel, coefficients);
        write_importance(importance);
        return FactorResult::done;
    }

private:
    Panels<double> panels() { return {storage.data()}; }
    int64_t padded() const { return blocks * side; }
    double* diagonal(int64_t row) { return panels().block(row / side, row / side) + row % side * (side + 1); }

    // Adds damping * mean diagonal to the diagonal; a Hessian that is zero counts as the unit matrix.
    bool load(const float* hessian, double damping) {
        double sum = 0;
        for (int64_t j = 0; j < cols; j++) sum += double(hessian[j * cols + j]);
        if (!(std::fabs(sum) < __builtin_inf())) return false;
        const double shift = sum == 0 ? 1 : damping * (sum / double(cols));
        least_pivot = std::fabs(shift) / 2;
        bool finite = true;
        for (int64_t panel = 0; panel < blocks; panel++)
            for (int64_t row = 0; row <= panel; row++) finite &= load_block(hessian, shift, row, panel);
        return finite;
    }

    bool load_block(const float* hessian, double shift, int64_t row, int64_t panel) {
        double* block = panels().block(row, panel);
        float check = 0;
        for (int64_t a = 0; a < side; a++)
            for (int64_t b = 0; b < side; b++) {
                const int64_t i = padded() - 1 - (row * side + a), j = padded() - 1 - (panel * side + b);
                const bool inside = i < cols && j < cols;
                const float value = inside ? hessian[(i < j ? i : j) * cols + (i < j ? j : i)] : float(i == j);
                check += value - value;
                block[a * side + b] = double(value) + (inside && i == j ? shift : 0);
            }
        return check == 0;
    }

    bool eliminate(int64_t row, int64_t panel) {
        double* block = panels().block(row, panel);
        subtract_products(panels().block(0, row), panels().block(0, panel), row * side, side, block);
        return row == panel ? factor_diagonal(block, row) : (solve(panels().block(row, row), block), true);
    }

    // Padding has pivots of one, whatever the Hessian's magnitude; all others are at least the shift in theory.
    bool factor_diagonal(double* block, int64_t row) {
        for (int j = 0; j < side; j++) {
            for (int k = 0; k < j; k++) subtract_row(block[k * side + j], block + k * side, block + j * side);
            const bool padding = padded() - 1 - (row * side + j) >= cols;
            const double pivot = block[j * side + j];
            if (!padding && !(pivot >= least_pivot && pivot < __builtin_inf())) return false;
            divide_row(block + j * side, std::sqrt(pivot));
        }
        return true;
    }

    static void solve(const double* triangle, double* block) {
        for (int j = 0; j < side; j++) {
            for (int k = 0; k < j; k++) subtract_row(triangle[k * side + j], block + k * side, block + j * side);
            divide_row(block + j * side, triangle[j * side + j]);
        }
    }

    static void subtract_row(double factor, const double* from, double* row) {
        for (int i = 0; i < side; i++) row[i] -= factor * from[i];
    }

    static void divide_row(double* row, double divisor) {
        for (int i = 0; i < side; i++) row[i] /= divisor;
    }

    // coefficients[k][j] = R_kj / R_jj: a block of T transposed, reversed and divided; zero where k >= j.
    void write_coefficients(int64_t row, int64_t panel, float* coefficients) {
        const double* block = panels().block(row, panel);
        float* target = Panels<float>{coefficients}.block(blocks - 1 - panel, blocks - 1 - row);
        for (int a = 0; a < side; a++) {
            const double divisor = *diagonal(row * side + a);
            for (int b = 0; b < side; b++) {
                const bool feeds = row < panel || a < b;
                target[(side - 1 - b) * side + side - 1 - a] = feeds ? float(block[a * side + b] / divisor) : 0;
            }
        }
    }

    // R_jj^2, relative to the largest.
    void write_importance(float* importance) {
        double largest = 0;
        const auto root = [&](int64_t j) { return *diagonal(padded() - 1 - j); };
        for (int64_t j = 0; j < cols; j++) largest = root(j) > largest ? root(j) : largest;
        for (int64_t j = 0; j < cols; j++) importance[j] = float((root(j) / largest) * (root(j) / largest));
    }

    int64_t cols;
    int64_t blocks;
    std::vector<double> storage;
    double least_pivot = 0;
};

inline FactorResult factorise(const float* hessian, int64_t cols, double damping, float* coefficients,
                              float* importance) {
    return Cholesky(cols).run(hessian, damping, coefficients, importance);
}

}  // namespace moepack::MOEPACK_ISA
