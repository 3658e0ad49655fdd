// Activations rounded to fifteen bits, a block of 32 at a time, and dealt out to the planes of packed codes.
//
// A block's scale is its largest magnitude / 16319 = 127 * 128 + 63, so that both bytes fit. What is not finite makes the
// scale such, and all numbers zero: integers stay within their bounds, and products become no numbers.
#include "declarations.h"

namespace moepack::MOEPACK_ISA {

namespace {

constexpr float LEAST = 1e-30f;            // blocks of smaller numbers round to zero
constexpr float MAGIC = 12582912.0f;       // 1.5 * 2^23: adding it rounds to the nearest integer, ties to even
constexpr uint32_t MAGIC_BITS = 0x4b400000u;
constexpr float MOST = 16319.0f;
constexpr uint32_t MAGNITUDE = 0x7fffffffu, INFINITE = 0x7f800000u;

struct Rounding {
  float scale;
  int32_t sum;
  int32_t offset() const { return -sum; }
  float weighed() const { return scale * static_cast<float>(sum); }
};

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Magnitudes are compared as integers: then infinities and what is not a number are the largest.
inline Rounding round_block(const float* x, int8_t* high, int8_t* low) {
  uint32_t most = 0;
  for (int i = 0; i < BLOCK; ++i) most = (bits_of(x[i]) & MAGNITUDE) > most ? bits_of(x[i]) & MAGNITUDE : most;
  float largest;
  std::memcpy(&largest, &most, sizeof largest);
  if (most >= INFINITE) {
    std::memset(high, 0, BLOCK), std::memset(low, 0, BLOCK);
    return {largest, 0};
  }
  const bool none = largest < LEAST;
  const float factor = none ? 0.0f : MOST / largest;
  int32_t sum = 0;
  for (int i = 0; i < BLOCK; ++i) {
    const int32_t number = static_cast<int32_t>(bits_of(x[i] * factor + MAGIC)) - static_cast<int32_t>(MAGIC_BITS);
    const int32_t upper = (number + 64) >> 7;
    high[i] = static_cast<int8_t>(upper), low[i] = static_cast<int8_t>(number - upper * 128);
    sum += number;
  }
  return {none ? 0.0f : largest / MOST, sum};
}

// to[p][i] = codes[PLANES i + p]
template <int PLANES, int64_t COUNT> void deal(const int8_t* codes, int8_t* to) {
  for (int64_t p = 0; p < PLANES; ++p)
#pragma GCC unroll 1
    for (int64_t i = 0; i < COUNT / PLANES; ++i) to[p * (COUNT / PLANES) + i] = codes[PLANES * i + p];
}

// Deals out whole chunks of 64 codes for each plane, in place.
template <int PLANES> void deal_chunks(int8_t* codes, int64_t count) {
  int8_t chunk[64 * PLANES];
  for (int64_t at = 0; PLANES > 1 && at < count; at += 64 * PLANES) {
    std::memcpy(chunk, codes + at, sizeof chunk);
    deal<PLANES, 64 * PLANES>(chunk, codes + at);
  }
}

// to[g] = sum of `each` neighbours of from.
void add_up(const float* from, int64_t count, int64_t each, float* to) {
  for (int64_t g = 0; g < count / each; ++g) {
    float sum = from[g * each];
    for (int64_t i = 1; i < each; ++i) sum += from[g * each + i];
    to[g] = sum;
  }
}

template <int PLANES> void round_to_chunks(const float* x, int64_t blocks, int64_t all, uint8_t* to, float* sums) {
  int8_t *const high = reinterpret_cast<int8_t*>(to), *const low = high + all * BLOCK;
  float* const scales = reinterpret_cast<float*>(low + all * BLOCK);
  int32_t* const offsets = reinterpret_cast<int32_t*>(scales + all);
  std::memset(to, 0, static_cast<size_t>(all) * sizeof(Packet));
  for (int64_t b = 0; b < blocks; ++b) {
    const Rounding one = round_block(x + b * BLOCK, high + b * BLOCK, low + b * BLOCK);
    scales[b] = one.scale, offsets[b] = one.offset(), sums[b] = one.weighed();
  }
  deal_chunks<PLANES>(high, all * BLOCK);
  deal_chunks<PLANES>(low, all * BLOCK);
}

template <int PLANES> void round_to_lanes(const float* x, int64_t blocks, int64_t all, uint8_t* to, float* sums) {
  for (int64_t b = 0; b < blocks; ++b) {
    Packet& packet = reinterpret_cast<Packet*>(to)[packet_of(b, all / 16)];
    int8_t high[BLOCK], low[BLOCK];
    const Rounding one = round_block(x + b * BLOCK, high, low);
    deal<PLANES, BLOCK>(high, packet.high);
    deal<PLANES, BLOCK>(low, packet.low);
    packet.scale = one.scale, packet.offset = one.offset(), sums[b] = one.weighed();
  }
}

template <int PLANES>
void round_blocks(const float* x, int64_t blocks, int64_t all, Order order, uint8_t* to, float* sums) {
  if (order == Order::lanes) round_to_lanes<PLANES>(x, blocks, all, to, sums);
  else round_to_chunks<PLANES>(x, blocks, all, to, sums);
}

}  // namespace

void round_row(const float* x, int64_t cols, int64_t planes, Order order, uint8_t* to) {
  const int64_t all = stretches_of(cols) * 16, blocks = cols / BLOCK;
  float* const sums = reinterpret_cast<float*>(to + all * static_cast<int64_t>(sizeof(Packet)));
  std::memset(sums, 0, static_cast<size_t>(3 * all) * sizeof(float));
  if (planes == 4) round_blocks<4>(x, blocks, all, order, to, sums);
  else if (planes == 2) round_blocks<2>(x, blocks, all, order, to, sums);
  else round_blocks<1>(x, blocks, all, order, to, sums);
  add_up(sums, all, 2, sums + all);
  add_up(sums, all, 4, sums + 2 * all);
}

}  // namespace moepack::MOEPACK_ISA
