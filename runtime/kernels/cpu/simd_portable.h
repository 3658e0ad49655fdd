// Sixteen lanes as four vectors of four, in the compilers' own vector extension: any machine, no fused multiply-add.
#pragma once

namespace moepack::MOEPACK_ISA {

typedef float Quad __attribute__((vector_size(16)));
typedef int32_t IntQuad __attribute__((vector_size(16)));
struct F16 {
  Quad v[4];
};

inline F16 load(const float* from) {
  F16 r;
  std::memcpy(&r, from, sizeof r);
  return r;
}
inline void store(float* to, F16 a) { std::memcpy(to, &a, sizeof a); }
inline F16 set(float x) {
  const Quad q = {x, x, x, x};
  return {{q, q, q, q}};
}

template <typename Op> inline F16 each(F16 a, F16 b, Op op) {
  return {{op(a.v[0], b.v[0]), op(a.v[1], b.v[1]), op(a.v[2], b.v[2]), op(a.v[3], b.v[3])}};
}
inline F16 add(F16 a, F16 b) {
  return each(a, b, [](Quad x, Quad y) { return x + y; });
}
inline F16 sub(F16 a, F16 b) {
  return each(a, b, [](Quad x, Quad y) { return x - y; });
}
inline F16 mul(F16 a, F16 b) {
  return each(a, b, [](Quad x, Quad y) { return x * y; });
}
inline F16 div(F16 a, F16 b) {
  return each(a, b, [](Quad x, Quad y) { return x / y; });
}
inline F16 max(F16 a, F16 b) {
  return each(a, b, [](Quad x, Quad y) { return x > y ? x : y; });
}
inline F16 min(F16 a, F16 b) {
  return each(a, b, [](Quad x, Quad y) { return x < y ? x : y; });
}
inline F16 fma(F16 a, F16 b, F16 c) { return add(mul(a, b), c); }

inline float reduce_add(F16 a) {
  const Quad q = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
  return (q[0] + q[2]) + (q[1] + q[3]);
}

// p times two to the integer held in the low mantissa bits of `shifted`.
inline F16 add_exponent(F16 p, F16 shifted) {
  return each(p, shifted, [](Quad x, Quad n) { return (Quad)((IntQuad)x + ((IntQuad)n << 23)); });
}

inline F16 load_bf16(const uint16_t* from) {
  uint32_t bits[16];
  for (int i = 0; i < 16; ++i) bits[i] = static_cast<uint32_t>(from[i]) << 16;
  F16 r;
  std::memcpy(&r, bits, sizeof r);
  return r;
}

// 16 / REPEAT values, each in REPEAT lanes.
template <int REPEAT> inline F16 load_bf16_repeated(const uint16_t* from) {
  if constexpr (REPEAT == 1) return load_bf16(from);
  uint16_t halves[16];
  for (int i = 0; i < 16; ++i) halves[i] = from[i / REPEAT];
  return load_bf16(halves);
}

// IEEE half to float: the exponent is rebased by a multiplication, which also handles subnormals exactly.
inline float half_to_float(uint16_t half) {
  const uint32_t magnitude = (half & 0x7fffu) << 13, sign = (half & 0x8000u) << 16;
  uint32_t bits;
  float value;
  std::memcpy(&value, &magnitude, 4);
  value *= 5.192296858534828e33f;  // 2^112
  std::memcpy(&bits, &value, 4);
  if ((half & 0x7c00u) == 0x7c00u) bits |= 0x7f800000u;
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline F16 load_f16(const uint16_t* from) {
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = half_to_float(from[i]);
  return load(lanes);
}

// One group's weights, sixteen at a time: code * scale + bias, rounded after the product and after the sum.
template <int BITS> struct Group {
  F16 scale, bias;
  void prepare(float s, float b) { scale = set(s), bias = set(b); }
  F16 weights(const uint8_t* codes) const {
    constexpr uint64_t mask = (1u << BITS) - 1;
    float lanes[16];
    for (int half = 0; half < 2; ++half) {
      const uint64_t chunk = load_chunk<BITS>(codes + half * BITS);
      for (int i = 0; i < 8; ++i)
        lanes[half * 8 + i] = static_cast<float>(static_cast<int32_t>(chunk >> (BITS * i) & mask));
    }
    return add(mul(load(lanes), scale), bias);
  }
};

// The levels that the sixteen codes of `2 * BITS` bytes pick: the first eight from one grid, the others from another.
template <int BITS> inline F16 picked_levels(const uint8_t* codes, const float* low, const float* high) {
  constexpr uint64_t mask = (1u << BITS) - 1;
  const uint64_t chunk = load_chunk<2 * BITS>(codes);
  float lanes[16];
  for (int i = 0; i < 8; ++i) lanes[i] = low[chunk >> (BITS * i) & mask];
  for (int i = 8; i < 16; ++i) lanes[i] = high[chunk >> (BITS * i) & mask];
  return load(lanes);
}
template <int BITS> inline F16 levels(const uint8_t* codes, const float* grid) {
  return picked_levels<BITS>(codes, grid, grid);
}
template <int BITS> inline F16 levels_of_two(const uint8_t* codes, const float* grids) {
  return picked_levels<BITS>(codes, grids, grids + (1 << BITS));
}

}  // namespace moepack::MOEPACK_ISA
