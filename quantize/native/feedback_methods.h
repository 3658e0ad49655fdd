// Error feedback for every format, by the sizes that are compiled in.
#pragma once
#include "factor.h"
#include "feedback_affine.h"
#include "feedback_grids.h"
#include "output_error.h"

namespace moepack::MOEPACK_ISA {

template <int size>
inline void feedback_of(const Feedback& given, const float* weights, const Target& target, int64_t rows, int64_t cols) {
    const Importance importance(given.importance, int(cols), size);
    AffineFeedback<size> grids(target, importance, cols);
    feed_back(given, weights, rows, cols, grids);
}

inline void feedback(const Feedback& given, const float* weights, const Target& target, int64_t rows, int64_t cols) {
    if (target.group_size == 32) return feedback_of<32>(given, weights, target, rows, cols);
    if (target.group_size == 64) return feedback_of<64>(given, weights, target, rows, cols);
    return feedback_of<128>(given, weights, target, rows, cols);
}

template <int bits, int size>
inline void grid_feedback_of(const Feedback& given, const float* weights, const GridTarget& target, int64_t rows,
                             int64_t cols) {
    const Importance importance(given.importance, int(cols), size);
    if (target.format.grid_bits == 4) {
        GridFeedback<BookGrids<bits, size>, bits, size> grids(target, importance, cols);
        feed_back(given, weights, rows, cols, grids);
    } else {
        GridFeedback<StepGrids<bits, size>, bits, size> grids(target, importance, cols);
        feed_back(given, weights, rows, cols, grids);
    }
}

template <int bits>
inline void grid_feedback_of_size(const Feedback& given, const float* weights, const GridTarget& target, int64_t rows,
                                  int64_t cols) {
    if (target.format.group_size == 8) return grid_feedback_of<bits, 8>(given, weights, target, rows, cols);
    if (target.format.group_size == 16) return grid_feedback_of<bits, 16>(given, weights, target, rows, cols);
    return grid_feedback_of<bits, 32>(given, weights, target, rows, cols);
}

inline void grid_feedback(const Feedback& given, const float* weights, const GridTarget& target, int64_t rows,
                          int64_t cols) {
    if (target.format.bits == 2) return grid_feedback_of_size<2>(given, weights, target, rows, cols);
    return grid_feedback_of_size<3>(given, weights, target, rows, cols);
}

}  // namespace moepack::MOEPACK_ISA
