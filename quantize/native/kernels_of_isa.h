// All kernels in a namespace of their own, so that the linker can never mix code of two instruction sets.
#pragma once
#include "descent.h"
#include "feedback_methods.h"
#include "grid_mse.h"
#include "histogram.h"
#include "importance.h"

namespace moepack::MOEPACK_ISA {

template <int size, bool weighted>
inline int64_t mse_of(const Source& source, const Target& target, int64_t groups, const GroupShares& shares) {
    if (suits_histogram(source, target)) return mse_by_histogram<size, weighted>(source, target, groups, shares);
    return mse_by_descent<size, weighted>(source, target, groups, shares);
}

template <int size>
inline int64_t mse_of(const Source& source, const Target& target, int64_t groups, int cols, const float* given) {
    const Importance importance(given, cols, size);
    const GroupShares shares{importance.shares.data(), cols / size, size};
    if (given) return mse_of<size, true>(source, target, groups, shares);
    return mse_of<size, false>(source, target, groups, shares);
}

inline int64_t quantize_minmax(const Source& source, const Target& target, int64_t groups) {
    if (target.group_size == 32) return minmax<32>(source, target, groups);
    if (target.group_size == 64) return minmax<64>(source, target, groups);
    return minmax<128>(source, target, groups);
}

inline int64_t quantize_mse(const Source& source, const Target& target, int64_t groups, int cols,
                            const float* importance) {
    if (target.group_size == 32) return mse_of<32>(source, target, groups, cols, importance);
    if (target.group_size == 64) return mse_of<64>(source, target, groups, cols, importance);
    return mse_of<128>(source, target, groups, cols, importance);
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
