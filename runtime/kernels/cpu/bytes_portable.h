// Bytes one by one: any machine, and the plain statement of what the others compute.
#pragma once

namespace moepack::MOEPACK_ISA {

struct U64 {
  uint8_t b[64];
};
struct I16 {
  int32_t i[16];
};

inline U64 load_bytes(const uint8_t* from) {
  U64 r;
  std::memcpy(&r, from, sizeof r);
  return r;
}
inline U64 load_signed(const int8_t* from) { return load_bytes(reinterpret_cast<const uint8_t*>(from)); }
inline void store_bytes(uint8_t* to, U64 a) { std::memcpy(to, &a, sizeof a); }
inline U64 repeat_four(const int8_t* from) {
  U64 r;
  for (int i = 0; i < 64; i += 4) std::memcpy(r.b + i, from, 4);
  return r;
}
inline I16 set_ints(int32_t x) {
  I16 r;
  for (int i = 0; i < 16; ++i) r.i[i] = x;
  return r;
}
inline I16 load_ints(const int32_t* from) {
  I16 r;
  std::memcpy(&r, from, sizeof r);
  return r;
}
inline I16 add_ints(I16 a, const I16& b) {
  for (int i = 0; i < 16; ++i) a.i[i] += b.i[i];
  return a;
}
template <int BITS> inline I16 shift_left(I16 a) {
  for (int i = 0; i < 16; ++i) a.i[i] *= 1 << BITS;
  return a;
}
inline F16 to_floats(I16 a) {
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = static_cast<float>(a.i[i]);
  return load(lanes);
}

// sums[i] += weights[4 i] * x[4 i] + ... + weights[4 i + 3] * x[4 i + 3]; weights are unsigned or SIGNED, x signed.
template <int MOST> inline I16 add_products(I16 sums, const U64& weights, const U64& x) {
  for (int i = 0; i < 64; ++i) {
    const int weight = MOST == SIGNED ? static_cast<int8_t>(weights.b[i]) : weights.b[i];
    sums.i[i / 4] += weight * static_cast<int8_t>(x.b[i]);
  }
  return sums;
}

inline I16 fold(I16 a, I16 b) {
  I16 r;
  for (int i = 0; i < 8; ++i) r.i[i] = a.i[2 * i] + a.i[2 * i + 1], r.i[8 + i] = b.i[2 * i] + b.i[2 * i + 1];
  return r;
}

template <int FIRST> inline U64 shifted(U64 bytes) {
  for (int i = 0; i < 64; ++i) bytes.b[i] = static_cast<uint8_t>(bytes.b[i] >> FIRST);
  return bytes;
}
template <int BITS> inline U64 lowest(U64 bytes) {
  for (int i = 0; i < 64; ++i) bytes.b[i] &= (1 << BITS) - 1;
  return bytes;
}

constexpr bool SIGNED_LEVELS = true;

// The levels of sixteen codebooks.
template <int BITS> struct Books {
  const uint8_t* table;
  explicit Books(const uint8_t* from) : table(from) {}
  U64 levels(U64 codes, const U64& books) const {
    for (int i = 0; i < 64; ++i) codes.b[i] = table[books.b[i] << BITS | (codes.b[i] & ((1 << BITS) - 1))] ^ 128;
    return codes;
  }
};

// The book of each byte of a chunk: of 64 bytes, every SPAN follow one book; books are four bits each, low ones first.
template <int BITS, int SPAN> inline U64 books_of(const uint8_t* grids) {
  U64 r;
  for (int i = 0; i < 64; ++i) r.b[i] = grids[i / (2 * SPAN)] >> 4 * (i / SPAN % 2) & 15;
  return r;
}

}  // namespace moepack::MOEPACK_ISA
