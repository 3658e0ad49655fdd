// What the compiled-per-instruction-set code offers to the bindings. A matrix is a plain run of groups here: rows
// hold whole groups, so neither codes nor scales need to know where a row ends.
#pragma once
#include <cstdint>

namespace moepack {

constexpr int max_group_size = 128;

enum class FloatType { float32, float16, bfloat16 };

struct Affine {
    FloatType type;  // of scales and biases
    int bits;
    int group_size;
    const uint8_t* codes;
    const uint8_t* scales;
    const uint8_t* biases;
};

// Weights to quantize: floats when `values` is set, else `affine`.
struct Source {
    const uint8_t* values;
    FloatType type;
    Affine affine;
};

// Where results go; scales and biases are bfloat16.
struct Target {
    int bits;
    int group_size;
    uint8_t* codes;
    uint8_t* scales;
    uint8_t* biases;
};

// Groups pick one of 2^grid_bits grids; `table` holds 2^bits ascending levels of each.
struct GridFormat {
    int bits;
    int group_size;
    int grid_bits;
    const int16_t* table;
};

// Scales are bfloat16, one per row.
struct GridMatrix {
    GridFormat format;
    const uint8_t* codes;
    const uint8_t* grids;
    const uint8_t* scales;
};

struct GridTarget {
    GridFormat format;
    uint8_t* codes;
    uint8_t* grids;
    uint8_t* scales;
};

// A Hessian made ready for error feedback, see factor.h.
struct Feedback {
    const float* coefficients;  // how much of what column k loses column j makes up for, as panels (products.h)
    const float* importance;    // [cols], relative to the largest
};

enum class FactorResult { done, not_finite, indefinite };

// The quantizers return the first group that holds a non-finite weight or whose range overflows (of grids: the first
// row with a non-finite weight), or -1. `importance` is one number per input, or nullptr: all count the same.
struct Kernels {
    const char* name;
    void (*dequantize)(const Affine& matrix, int64_t count, float* weights);
    void (*dequantize_grids)(const GridMatrix& matrix, int64_t rows, int cols, float* weights);
    int64_t (*minmax)(const Source& source, const Target& target, int64_t groups);
    int64_t (*mse)(const Source& source, const Target& target, int64_t groups, int cols, const float* importance);
    int64_t (*quantize_grids)(const Source& source, const GridTarget& target, int64_t rows, int cols,
                              const float* importance);
    FactorResult (*factorise)(const float* hessian, int64_t cols, double damping, float* coefficients,
                              float* importance);
    void (*feedback)(const Feedback& feedback, const float* weights, const Target& target, int64_t rows, int64_t cols);
    void (*grid_feedback)(const Feedback& feedback, const float* weights, const GridTarget& target, int64_t rows,
                          int64_t cols);
    double (*output_error)(const float* differences, int64_t rows, int64_t cols, const float* hessian);
};

// The best instruction set of this machine, or the one that the environment variable MOEPACK_ISA names: nullptr if this
// machine cannot run it.
const Kernels* chosen_kernels();

// The sets this machine can run, plainest first; ends with nullptr.
const Kernels* const* available_kernels();

}  // namespace moepack
