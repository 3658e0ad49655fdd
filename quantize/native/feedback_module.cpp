// Bindings of error feedback. Matrices of float32 arrive as such, in C order; targets as bytes.
#include "bindings.h"

namespace moepack {

namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableVector = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

int64_t coefficient_count(int64_t cols) {
    const int64_t blocks = (cols + 63) / 64;
    return blocks * (blocks + 1) / 2 * 64 * 64;
}

std::string factorise(Matrix hessian, double damping, MutableVector coefficients, MutableVector importance) {
    const int64_t cols = int64_t(hessian.shape(0));
    require(int64_t(hessian.shape(1)) == cols, "a Hessian is square");
    require(int64_t(coefficients.size()) == coefficient_count(cols) && int64_t(importance.size()) == cols,
            "coefficients and importance do not fit the Hessian");
    const Kernels& set = kernels();
    nb::gil_scoped_release released;
    const PlainArithmetic plain;
    switch (set.factorise(hessian.data(), cols, damping, coefficients.data(), importance.data())) {
        case FactorResult::done: return "";
        case FactorResult::not_finite: return "has a value that is NaN or infinite";
        default: return "is not positive semidefinite";
    }
}

Feedback feedback_of(const Matrix& weights, const Vector& coefficients, const Vector& importance) {
    const int64_t cols = int64_t(weights.shape(1));
    require(int64_t(importance.size()) == cols && int64_t(coefficients.size()) == coefficient_count(cols),
            "weights and feedback differ in columns");
    return {coefficients.data(), importance.data()};
}

void feedback(Matrix weights, Vector coefficients, Vector importance, int bits, int group_size, MutableBytes codes,
              MutableBytes scales, MutableBytes biases) {
    const Feedback given = feedback_of(weights, coefficients, importance);
    const int64_t rows = int64_t(weights.shape(0)), cols = int64_t(weights.shape(1));
    require(bits == 2 || bits == 3 || bits == 4 || bits == 6 || bits == 8, "bits must be 2, 3, 4, 6 or 8");
    require(group_size == 32 || group_size == 64 || group_size == 128, "group size must be 32, 64 or 128");
    require(cols % group_size == 0 && int64_t(codes.size()) == rows * cols / 8 * bits, "codes do not fit");
    const int64_t parameters = 2 * rows * (cols / group_size);
    require(int64_t(scales.size()) == parameters, "scales do not fit");
    require(int64_t(biases.size()) == parameters, "biases do not fit");
    const Target target{bits, group_size, codes.data(), scales.data(), biases.data()};
    const Kernels& set = kernels();
    nb::gil_scoped_release released;
    const PlainArithmetic plain;
    set.feedback(given, weights.data(), target, rows, cols);
}

void grid_feedback(Matrix weights, Vector coefficients, Vector importance, Table table, int group_size,
                   MutableBytes codes, MutableBytes grids, MutableBytes scales) {
    const Feedback given = feedback_of(weights, coefficients, importance);
    const int64_t rows = int64_t(weights.shape(0)), cols = int64_t(weights.shape(1));
    const int bits = table.shape(1) == 4 ? 2 : 3, grid_bits = table.shape(0) == 16 ? 4 : 8;
    require(table.shape(1) == size_t(1 << bits) && table.shape(0) == size_t(1 << grid_bits), "no such table of levels");
    require(group_size == 8 || group_size == 16 || group_size == 32, "group size must be 8, 16 or 32");
    require(cols % 32 == 0 && int64_t(codes.size()) == rows * cols / 8 * bits, "codes do not fit");
    require(int64_t(grids.size()) == rows * (cols * grid_bits / (8 * group_size)), "grids do not fit");
    require(int64_t(scales.size()) == 2 * rows, "scales do not fit");
    const GridFormat format{bits, group_size, grid_bits, table.data()};
    const GridTarget target{format, codes.data(), grids.data(), scales.data()};
    const Kernels& set = kernels();
    nb::gil_scoped_release released;
    const PlainArithmetic plain;
    set.grid_feedback(given, weights.data(), target, rows, cols);
}

double output_error(Matrix differences, Matrix hessian) {
    const int64_t rows = int64_t(differences.shape(0)), cols = int64_t(differences.shape(1));
    require(int64_t(hessian.shape(0)) == cols && int64_t(hessian.shape(1)) == cols, "weights and Hessian do not fit");
    const Kernels& set = kernels();
    nb::gil_scoped_release released;
    const PlainArithmetic plain;
    return set.output_error(differences.data(), rows, cols, hessian.data());
}

}  // namespace

void bind_feedback(nb::module_& m) {
    m.def("coefficient_count", &coefficient_count);
    m.def("factorise", &factorise);
    m.def("feedback", &feedback);
    m.def("grid_feedback", &grid_feedback);
    m.def("output_error", &output_error);
}

}  // namespace moepack
