// Codes and their bit streams: eight codes of b bits fill exactly b bytes, first code in the lowest bits.
#pragma once
#include <cstdint>
#include <cstring>

namespace moepack::MOEPACK_ISA {

// Eight codes, one per byte of `codes`, closed up into the low 8 * bits bits: pairs, then fours, then all eight.
template <int bits>
inline uint64_t pack8(uint64_t codes) {
    codes = (codes & 0x00ff00ff00ff00ff) | (codes & 0xff00ff00ff00ff00) >> (8 - bits);
    codes = (codes & 0x0000ffff0000ffff) | (codes & 0xffff0000ffff0000) >> (16 - 2 * bits);
    return (codes & 0x00000000ffffffff) | (codes & 0xffffffff00000000) >> (32 - 4 * bits);
}

template <int bits>
inline uint64_t unpack8(uint64_t stream) {
    constexpr uint64_t four = (uint64_t{1} << 4 * bits) - 1;
    constexpr uint64_t two = ((uint64_t{1} << 2 * bits) - 1) * 0x0000000100000001;
    constexpr uint64_t one = ((uint64_t{1} << bits) - 1) * 0x0001000100010001;
    stream = (stream & four) | (stream >> 4 * bits & four) << 32;
    stream = (stream & two) | (stream >> 2 * bits & two) << 16;
    return (stream & one) | (stream >> bits & one) << 8;
}

template <int bits>
inline void pack(const uint8_t* codes, int count, uint8_t* stream) {
    for (int i = 0; i < count / 8; i++) {
        uint64_t eight;
        std::memcpy(&eight, codes + 8 * i, 8);
        eight = pack8<bits>(eight);
        std::memcpy(stream + bits * i, &eight, bits);
    }
}

template <int bits>
inline void unpack(const uint8_t* stream, int count, uint8_t* codes) {
    for (int i = 0; i < count / 8; i++) {
        uint64_t eight = 0;
        std::memcpy(&eight, stream + bits * i, bits);
        eight = unpack8<bits>(eight);
        std::memcpy(codes + 8 * i, &eight, 8);
    }
}

// Compilers make whole vectors of this one, and 4 bits are what checkpoints come in.
template <>
inline void unpack<4>(const uint8_t* stream, int count, uint8_t* codes) {
    for (int i = 0; i < count / 2; i++) {
        codes[2 * i] = stream[i] & 15;
        codes[2 * i + 1] = stream[i] >> 4;
    }
}

// `count` is a multiple of 8; `bits` one of 2, 3, 4, 6, 8.
inline void pack(const uint8_t* codes, int count, int bits, uint8_t* stream) {
    switch (bits) {
        case 2: return pack<2>(codes, count, stream);
        case 3: return pack<3>(codes, count, stream);
        case 4: return pack<4>(codes, count, stream);
        case 6: return pack<6>(codes, count, stream);
        default: return pack<8>(codes, count, stream);
    }
}

inline void unpack(const uint8_t* stream, int count, int bits, uint8_t* codes) {
    switch (bits) {
        case 2: return unpack<2>(stream, count, codes);
        case 3: return unpack<3>(stream, count, codes);
        case 4: return unpack<4>(stream, count, codes);
        case 6: return unpack<6>(stream, count, codes);
        default: return unpack<8>(stream, count, codes);
    }
}

}  // namespace moepack::MOEPACK_ISA
