// Bindings: arrays arrive as bytes in C order, their sizes are checked here, and the GIL is released.
#include "bindings.h"

#include <nanobind/stl/optional.h>

#include <optional>

using namespace moepack;
using Importances = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

namespace {

// How many weights a matrix of these arrays holds.
int64_t checked_count(int bits, int group_size, int64_t codes, int64_t scales, int64_t biases, int64_t scale_size) {
    require(bits == 2 || bits == 3 || bits == 4 || bits == 6 || bits == 8, "bits must be 2, 3, 4, 6 or 8");
    require(group_size == 32 || group_size == 64 || group_size == 128, "group size must be 32, 64 or 128");
    const int64_t groups = scales / scale_size;
    require(groups * scale_size == scales && biases == scales, "scales and biases must be as many");
    require(groups * group_size * bits == codes * 8, "codes and scales do not belong to one matrix");
    return groups * group_size;
}

struct AffineArrays {
    Affine affine;
    int64_t count;
};

AffineArrays affine_of(const std::string& dtype, int bits, int group_size, const Bytes& codes, const Bytes& scales,
                       const Bytes& biases) {
    const FloatType type = float_type(dtype);
    const int64_t count = checked_count(bits, group_size, int64_t(codes.size()), int64_t(scales.size()),
                                        int64_t(biases.size()), float_size(type));
    return {{type, bits, group_size, codes.data(), scales.data(), biases.data()}, count};
}

void dequantize(const std::string& dtype, int bits, int group_size, Bytes codes, Bytes scales, Bytes biases,
                MutableBytes weights) {
    const AffineArrays matrix = affine_of(dtype, bits, group_size, codes, scales, biases);
    require(int64_t(weights.size()) == 4 * matrix.count, "weights must have one float32 per code");
    const Kernels& set = kernels();
    nb::gil_scoped_release released;
    const PlainArithmetic plain;
    set.dequantize(matrix.affine, matrix.count, reinterpret_cast<float*>(weights.data()));
}

// The first row with a non-finite weight, or -1.
int64_t quantize(const Source& source, int64_t count, const std::string& method, int64_t cols, int bits, int group_size,
                 const MutableBytes& codes, const MutableBytes& scales, const MutableBytes& biases,
                 const std::optional<Importances>& importance) {
    const int64_t wanted = checked_count(bits, group_size, int64_t(codes.size()), int64_t(scales.size()),
                                         int64_t(biases.size()), 2);
    require(wanted == count && cols > 0 && cols % group_size == 0, "source and target differ in shape");
    require(!importance || int64_t(importance->size()) == cols, "there must be one importance per input");
    require(method == "minmax" || method == "mse", "no such method");
    const Target target{bits, group_size, codes.data(), scales.data(), biases.data()};
    const Kernels& set = kernels();
    const float* counts = importance ? importance->data() : nullptr;
    nb::gil_scoped_release released;
    const PlainArithmetic plain;
    const int64_t groups = count / group_size;
    const int64_t bad_group = method == "minmax" ? set.minmax(source, target, groups)
                                                 : set.mse(source, target, groups, int(cols), counts);
    return bad_group < 0 ? -1 : bad_group * group_size / cols;
}

int64_t quantize_floats(const std::string& dtype, Bytes weights, const std::string& method, int64_t cols, int bits,
                        int group_size, MutableBytes codes, MutableBytes scales, MutableBytes biases,
                        std::optional<Importances> importance) {
    const FloatType type = float_type(dtype);
    const Source source{weights.data(), type, {}};
    const int64_t count = int64_t(weights.size()) / float_size(type);
    return quantize(source, count, method, cols, bits, group_size, codes, scales, biases, importance);
}

int64_t quantize_affine(const std::string& dtype, int source_bits, int source_group_size, Bytes source_codes,
                        Bytes source_scales, Bytes source_biases, const std::string& method, int64_t cols, int bits,
                        int group_size, MutableBytes codes, MutableBytes scales, MutableBytes biases,
                        std::optional<Importances> importance) {
    const AffineArrays matrix =
        affine_of(dtype, source_bits, source_group_size, source_codes, source_scales, source_biases);
    const Source source{nullptr, FloatType::float32, matrix.affine};
    return quantize(source, matrix.count, method, cols, bits, group_size, codes, scales, biases, importance);
}

int checked_grid_bits(const Table& table, int bits) {
    require((table.shape(0) == 16 || table.shape(0) == 256) && table.shape(1) == size_t(1) << bits, "no table of grids");
    return table.shape(0) == 16 ? 4 : 8;
}

GridFormat grid_format(int bits, int group_size, const Table& table) {
    require(bits == 2 || bits == 3, "bits of grids must be 2 or 3");
    const int grid_bits = checked_grid_bits(table, bits);
    require(group_size == 16 || group_size == (grid_bits == 4 ? 8 : 32), "no such group size for these grids");
    return {bits, group_size, grid_bits, table.data()};
}

// How many rows these arrays hold.
int64_t checked_rows(const GridFormat& format, int64_t cols, int64_t codes, int64_t grids, int64_t scales) {
    require(cols > 0 && cols % 32 == 0 && cols < 1 << 30, "rows of grids must hold a multiple of 32 weights");
    const int64_t rows = scales / 2;
    require(scales == 2 * rows && codes * 8 == rows * cols * format.bits, "codes and scales must be of one matrix");
    require(grids * 8 * format.group_size == rows * cols * format.grid_bits, "grids and scales must be of one matrix");
    return rows;
}

void dequantize_grids(int64_t cols, int bits, int group_size, Table table, Bytes codes, Bytes grids, Bytes scales,
                      MutableBytes weights) {
    const GridFormat format = grid_format(bits, group_size, table);
    const int64_t rows =
        checked_rows(format, cols, int64_t(codes.size()), int64_t(grids.size()), int64_t(scales.size()));
    require(int64_t(weights.size()) == 4 * rows * cols, "weights must have one float32 per code");
    const GridMatrix matrix{format, codes.data(), grids.data(), scales.data()};
    const Kernels& set = kernels();
    nb::gil_scoped_release released;
    const PlainArithmetic plain;
    set.dequantize_grids(matrix, rows, int(cols), reinterpret_cast<float*>(weights.data()));
}

// The first row with a non-finite weight, or -1.
int64_t quantize_grids(const Source& source, int64_t count, int64_t cols, const GridFormat& format,
                       const MutableBytes& codes, const MutableBytes& grids, const MutableBytes& scales,
                       const std::optional<Importances>& importance) {
    const int64_t rows =
        checked_rows(format, cols, int64_t(codes.size()), int64_t(grids.size()), int64_t(scales.size()));
    require(rows * cols == count, "source and target differ in shape");
    require(!importance || int64_t(importance->size()) == cols, "there must be one importance per input");
    const GridTarget target{format, codes.data(), grids.data(), scales.data()};
    const Kernels& set = kernels();
    nb::gil_scoped_release released;
    const PlainArithmetic plain;
    return set.quantize_grids(source, target, rows, int(cols), importance ? importance->data() : nullptr);
}

int64_t quantize_floats_to_grids(const std::string& dtype, Bytes weights, int64_t cols, int bits, int group_size,
                                 Table table, MutableBytes codes, MutableBytes grids, MutableBytes scales,
                                 std::optional<Importances> importance) {
    const FloatType type = float_type(dtype);
    const int64_t count = int64_t(weights.size()) / float_size(type);
    const GridFormat format = grid_format(bits, group_size, table);
    return quantize_grids({weights.data(), type, {}}, count, cols, format, codes, grids, scales, importance);
}

int64_t quantize_affine_to_grids(const std::string& dtype, int source_bits, int source_group_size, Bytes source_codes,
                                 Bytes source_scales, Bytes source_biases, int64_t cols, int bits, int group_size,
                                 Table table, MutableBytes codes, MutableBytes grids, MutableBytes scales,
                                 std::optional<Importances> importance) {
    const AffineArrays matrix =
        affine_of(dtype, source_bits, source_group_size, source_codes, source_scales, source_biases);
    const GridFormat format = grid_format(bits, group_size, table);
    return quantize_grids({nullptr, FloatType::float32, matrix.affine}, matrix.count, cols, format, codes, grids,
                          scales, importance);
}

nb::tuple available_names() {
    nb::list names;
    for (const Kernels* const* set = available_kernels(); *set; set++) names.append((*set)->name);
    return nb::tuple(names);
}

}  // namespace

NB_MODULE(_native, m) {
    m.attr("INSTRUCTION_SETS") = available_names();
    m.def("instruction_set", [] { return kernels().name; });
    m.def("dequantize", &dequantize);
    m.def("dequantize_grids", &dequantize_grids);
    m.def("quantize_floats", &quantize_floats);
    m.def("quantize_affine", &quantize_affine);
    m.def("quantize_floats_to_grids", &quantize_floats_to_grids);
    m.def("quantize_affine_to_grids", &quantize_affine_to_grids);
    bind_feedback(m);
}
