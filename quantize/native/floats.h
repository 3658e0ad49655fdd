// float16 and bfloat16 by integer arithmetic, so that the result depends on no instruction set.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace moepack::MOEPACK_ISA {

inline float float_of_bfloat16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

inline float float_of_float16(uint16_t bits) {
    const uint32_t magnitude = uint32_t(bits & 0x7fff) << 13;
    // Moving the exponent from bias 15 to 127 is a multiplication by 2^112, exact for subnormal numbers too.
    const uint32_t scaled = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
    const uint32_t special = magnitude >= 0x0f800000 ? 0x7f800000 : 0;
    return std::bit_cast<float>(uint32_t(bits & 0x8000) << 16 | scaled | special);
}

inline uint16_t bfloat16_truncated(float value) { return uint16_t(std::bit_cast<uint32_t>(value) >> 16); }

// Rounds to nearest, ties to even. Finite values only; those beyond the largest bfloat16 become infinite.
inline uint16_t bfloat16_nearest(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float load_float(const uint8_t* values, FloatType type, int64_t index) {
    if (type == FloatType::float32) {
        float value;
        std::memcpy(&value, values + 4 * index, 4);
        return value;
    }
    uint16_t half;
    std::memcpy(&half, values + 2 * index, 2);
    return type == FloatType::float16 ? float_of_float16(half) : float_of_bfloat16(half);
}

inline void load_floats(const uint8_t* values, FloatType type, int64_t first, int count, float* out) {
    switch (type) {
        case FloatType::float32:
            std::memcpy(out, values + 4 * first, 4 * size_t(count));
            break;
        case FloatType::float16:
            for (int i = 0; i < count; i++) out[i] = load_float(values, FloatType::float16, first + i);
            break;
        case FloatType::bfloat16:
            for (int i = 0; i < count; i++) out[i] = load_float(values, FloatType::bfloat16, first + i);
            break;
    }
}

}  // namespace moepack::MOEPACK_ISA
