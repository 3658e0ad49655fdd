// All kernels in a namespace of their own, so that the linker can never mix code of two instruction sets.
#pragma once
#include "descent.h"
#include "feedback_methods.h"
#include "grid_mse.h"
#include "histogram.h"

namespace moepack::MOEPACK_ISA {

template <int size>
inline int64_t mse_of(const Source& source, const Target& target, int64_t groups) {
    if (suits_histogram(source, target)) return mse_by_histogram<size>(source, target, groups);
    return mse_by_descent<size>(source, target, groups);
}

inline int64_t quantize_minmax(const Source& source, const Target& target, int64_t groups) {
    if (target.group_size == 32) return minmax<32>(source, target, groups);
    if (target.group_size == 64) return minmax<64>(source, target, groups);
    return minmax<128>(source, target, groups);
}

inline int64_t quantize_mse(const Source& source, const Target& target, int64_t groups) {
    if (target.group_size == 32) return mse_of<32>(source, target, groups);
    if (target.group_size == 64) return mse_of<64>(source, target, groups);
    return mse_of<128>(source, target, groups);
}

#define MOEPACK_NAME_OF(isa) #isa
#define MOEPACK_NAME(isa) MOEPACK_NAME_OF(isa)
extern const Kernels kernels;
const Kernels kernels = {MOEPACK_NAME(MOEPACK_ISA),
                         dequantize,
                         dequantize_grids,
                         quantize_minmax,
                         quantize_mse,
                         quantize_grids,
                         factorise,
                         feedback,
                         grid_feedback,
                         output_error};

}  // namespace moepack::MOEPACK_ISA
