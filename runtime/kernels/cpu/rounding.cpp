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

template <int PLANES> void deal(const int8_t* codes, int8_t* to) {
  for (int64_t i = 0; i < 64; ++i)
    for (int p = 0; p < PLANES; ++p) to[p * 64 + i] = codes[PLANES * i + p];
}

void deal_row(int64_t planes, int64_t width, int8_t* row, int8_t* chunk) {
  for (int64_t at = 0; planes > 1 && at < width; at += 64 * planes) {
    std::memcpy(chunk, row + at, static_cast<size_t>(64 * planes));
    planes == 4 ? deal<4>(chunk, row + at) : deal<2>(chunk, row + at);
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

}  // namespace

void round_row(const float* x, int64_t cols, int64_t planes, int64_t row, const Rounded& to) {
  const int64_t blocks = to.width / BLOCK;
  int8_t *const high = to.codes + 2 * row * to.width, *const low = high + to.width;
  float *const scales = to.scales + row * blocks, *const sums = to.sums + row * 3 * blocks;
  std::memset(high + cols, 0, static_cast<size_t>(to.width - cols));
  std::memset(low + cols, 0, static_cast<size_t>(to.width - cols));
  for (int64_t b = 0; b < blocks; ++b) {
    const Rounding one = b < cols / BLOCK ? round_block(x + b * BLOCK, high + b * BLOCK, low + b * BLOCK)
                                                : Rounding{0.0f, 0};
    scales[b] = one.scale;
    sums[b] = one.scale * static_cast<float>(one.sum);
    to.offsets[row * blocks + b] = -one.sum;
  }
  add_up(sums, blocks, 2, sums + blocks);
  add_up(sums, blocks, 4, sums + 2 * blocks);
  std::memset(sums + blocks + blocks / 2, 0, static_cast<size_t>(blocks / 2) * sizeof(float));
  std::memset(sums + 2 * blocks + blocks / 4, 0, static_cast<size_t>(blocks - blocks / 4) * sizeof(float));
  int8_t chunk[256];
  deal_row(planes, to.width, high, chunk);
  deal_row(planes, to.width, low, chunk);
}

}  // namespace moepack::MOEPACK_ISA
