// Reading groups of weights as float32, whatever they are stored as.
#pragma once
#include "bits.h"
#include "floats.h"

namespace moepack::MOEPACK_ISA {

// code * scale + bias; the product is rounded first (the build forbids contraction to a fused multiply-add).
inline void dequantize_codes(const uint8_t* codes, int count, float scale, float bias, float* weights) {
    for (int i = 0; i < count; i++) weights[i] = float(codes[i]) * scale + bias;
}

// Weights first .. first + count - 1 of a matrix; both are multiples of 32.
inline void load_affine(const Affine& matrix, int64_t first, int count, float* weights) {
    alignas(64) uint8_t codes[max_group_size];
    while (count > 0) {
        const int64_t group = first / matrix.group_size;
        const int left = int((group + 1) * matrix.group_size - first);
        const int now = left < count ? left : count;
        unpack(matrix.codes + first / 8 * matrix.bits, now, matrix.bits, codes);
        const float scale = load_float(matrix.scales, matrix.type, group);
        const float bias = load_float(matrix.biases, matrix.type, group);
        dequantize_codes(codes, now, scale, bias, weights);
        first += now, weights += now, count -= now;
    }
}

inline void load_group(const Source& source, int64_t group, int size, float* weights) {
    if (source.values) return load_floats(source.values, source.type, group * size, size, weights);
    load_affine(source.affine, group * size, size, weights);
}

inline void dequantize(const Affine& matrix, int64_t count, float* weights) {
    for (int64_t first = 0; first < count; first += matrix.group_size)
        load_affine(matrix, first, matrix.group_size, weights + first);
}

}  // namespace moepack::MOEPACK_ISA
