// What the bindings share: arrays arrive as bytes in C order, their sizes are checked, and the GIL is released.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cfenv>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace moepack {

namespace nb = nanobind;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const int16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MutableBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

inline const Kernels& kernels() {
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

inline FloatType float_type(const std::string& name) {
    if (name == "float32") return FloatType::float32;
    if (name == "float16") return FloatType::float16;
    if (name == "bfloat16") return FloatType::bfloat16;
    throw std::invalid_argument("no such float type: " + name);
}

inline int64_t float_size(FloatType type) { return type == FloatType::float32 ? 4 : 2; }

inline void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

void bind_feedback(nb::module_& m);

}  // namespace moepack
