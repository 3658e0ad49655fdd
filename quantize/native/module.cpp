// Bindings: arrays arrive as bytes in C order, their sizes are checked here, and the GIL is released.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cfenv>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace nb = nanobind;
using namespace moepack;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

namespace {

const Kernels& kernels() {
    static const Kernels* const chosen = chosen_kernels();
    if (!chosen) throw std::runtime_error("MOEPACK_ISA names no instruction set that this machine runs");
    return *chosen;
}

// Round to nearest and no flush to zero, whatever another library of this process has set for the thread.
class PlainArithmetic {
public:
    PlainArithmetic() { std::fegetenv(&saved), std::fesetenv(FE_DFL_ENV); }
    ~PlainArithmetic() { std::fesetenv(&saved); }
    PlainArithmetic(const PlainArithmetic&) = delete;
    PlainArithmetic& operator=(const PlainArithmetic&) = delete;

private:
    std::fenv_t saved;
};

FloatType float_type(const std::string& name) {
    if (name == "float32") return FloatType::float32;
    if (name == "float16") return FloatType::float16;
    if (name == "bfloat16") return FloatType::bfloat16;
    throw std::invalid_argument("no such float type: " + name);
}

int64_t float_size(FloatType type) { return type == FloatType::float32 ? 4 : 2; }

void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

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
                 const MutableBytes& codes, const MutableBytes& scales, const MutableBytes& biases) {
    const int64_t wanted = checked_count(bits, group_size, int64_t(codes.size()), int64_t(scales.size()),
                                         int64_t(biases.size()), 2);
    require(wanted == count && cols % group_size == 0, "source and target differ in shape");
    require(method == "minmax" || method == "mse", "no such method");
    const Target target{bits, group_size, codes.data(), scales.data(), biases.data()};
    const auto run = method == "minmax" ? kernels().minmax : kernels().mse;
    nb::gil_scoped_release released;
    const PlainArithmetic plain;
    const int64_t bad_group = run(source, target, count / group_size);
    return bad_group < 0 ? -1 : bad_group * group_size / cols;
}

int64_t quantize_floats(const std::string& dtype, Bytes weights, const std::string& method, int64_t cols, int bits,
                        int group_size, MutableBytes codes, MutableBytes scales, MutableBytes biases) {
    const FloatType type = float_type(dtype);
    const Source source{weights.data(), type, {}};
    const int64_t count = int64_t(weights.size()) / float_size(type);
    return quantize(source, count, method, cols, bits, group_size, codes, scales, biases);
}

int64_t quantize_affine(const std::string& dtype, int source_bits, int source_group_size, Bytes source_codes,
                        Bytes source_scales, Bytes source_biases, const std::string& method, int64_t cols, int bits,
                        int group_size, MutableBytes codes, MutableBytes scales, MutableBytes biases) {
    const AffineArrays matrix =
        affine_of(dtype, source_bits, source_group_size, source_codes, source_scales, source_biases);
    const Source source{nullptr, FloatType::float32, matrix.affine};
    return quantize(source, matrix.count, method, cols, bits, group_size, codes, scales, biases);
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
    m.def("quantize_floats", &quantize_floats);
    m.def("quantize_affine", &quantize_affine);
}
