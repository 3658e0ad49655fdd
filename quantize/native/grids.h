// Matrices of grids: how they are read and written.
#pragma once
#include "groups.h"

namespace moepack::MOEPACK_ISA {

inline int grid_of(const GridFormat& format, const uint8_t* grids, int64_t group) {
    if (format.grid_bits == 8) return grids[group];
    return grids[group / 2] >> (group % 2 ? 4 : 0) & 15;
}

inline void store_grids(const GridFormat& format, const uint8_t* chosen, int groups, uint8_t* grids) {
    if (format.grid_bits == 8) std::memcpy(grids, chosen, size_t(groups));
    else
        for (int i = 0; i < groups / 2; i++) grids[i] = uint8_t(chosen[2 * i] | chosen[2 * i + 1] << 4);
}

// scale * level: exact, but for results too small or too large for float32.
inline void dequantize_grids(const GridMatrix& matrix, int64_t rows, int cols, float* weights) {
    const GridFormat& format = matrix.format;
    const int size = format.group_size;
    alignas(64) uint8_t codes[max_group_size];
    for (int64_t row = 0; row < rows; row++) {
        const float scale = load_float(matrix.scales, FloatType::bfloat16, row);
        for (int64_t first = row * cols; first < (row + 1) * cols; first += size) {
            const int16_t* levels = format.table + (grid_of(format, matrix.grids, first / size) << format.bits);
            unpack(matrix.codes + first / 8 * format.bits, size, format.bits, codes);
            for (int i = 0; i < size; i++) weights[first + i] = scale * float(levels[codes[i]]);
        }
    }
}

}  // namespace moepack::MOEPACK_ISA
