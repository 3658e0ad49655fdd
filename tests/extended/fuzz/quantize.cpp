// Feeds the quantizers any weights, codes, scales, grids and importances that the bindings let through, in buffers of
// exact size, on every instruction set of this machine; all of them must give the same bytes.
#include "buffers.h"
#include "kernels.h"

#include <string>
#include <vector>

using namespace moepack;

namespace {

constexpr int BITS[] = {2, 3, 4, 6, 8};
constexpr int GRID_GROUPS[2][2] = {{8, 16}, {16, 32}};

int any_bits(FuzzedDataProvider& in) { return BITS[in.ConsumeIntegralInRange<size_t>(0, 4)]; }

std::string bytes_of(const void* at, int64_t size) { return {static_cast<const char*>(at), static_cast<size_t>(size)}; }

std::string one_set(const Kernels& k, FuzzedDataProvider in) {
  const int64_t rows = in.ConsumeIntegralInRange<int64_t>(1, 6), cols = 128 * in.ConsumeIntegralInRange<int64_t>(1, 5);
  const int64_t count = rows * cols;
  const auto type = static_cast<FloatType>(in.ConsumeIntegralInRange<int>(0, 2));
  const int64_t size = type == FloatType::float32 ? 4 : 2;
  const int from_bits = any_bits(in), from_group = 32 << in.ConsumeIntegralInRange<int>(0, 2);
  Buffer<uint8_t> values(count * size), codes(count * from_bits / 8), scales(count / from_group * size),
      biases(count / from_group * size);
  values.fill(in), codes.fill(in), scales.fill(in), biases.fill(in);
  const Affine affine{type, from_bits, from_group, codes.data(), scales.data(), biases.data()};
  const Source source = in.ConsumeBool() ? Source{values.data(), type, {}} : Source{nullptr, FloatType::float32, affine};
  Buffer<float> importance(cols), weights(count);
  for (int64_t i = 0; i < cols; ++i) importance.data()[i] = in.ConsumeFloatingPointInRange<float>(0, 1e6f);
  const float* const counts = in.ConsumeBool() ? importance.data() : nullptr;

  std::string found;
  k.dequantize(affine, count, weights.data());
  const int to_bits = any_bits(in), to_group = 32 << in.ConsumeIntegralInRange<int>(0, 2);
  Buffer<uint8_t> to_codes(count * to_bits / 8), to_scales(count / to_group * 2), to_biases(count / to_group * 2);
  const Target target{to_bits, to_group, to_codes.data(), to_scales.data(), to_biases.data()};
  const bool minmax = in.ConsumeBool();
  const int64_t bad = minmax ? k.minmax(source, target, count / to_group)
                             : k.mse(source, target, count / to_group, static_cast<int>(cols), counts);
  found += std::to_string(bad);
  if (bad < 0)
    found += bytes_of(to_codes.data(), count * to_bits / 8) + bytes_of(to_scales.data(), count / to_group * 2) +
             bytes_of(to_biases.data(), count / to_group * 2);

  const int grid_bits = in.ConsumeBool() ? 4 : 8, bits = in.ConsumeBool() ? 2 : 3;
  const int group = GRID_GROUPS[grid_bits == 8][in.ConsumeBool()], levels = 1 << bits;
  Buffer<int16_t> table((1 << grid_bits) * levels);
  for (int64_t i = 0; i < 1 << grid_bits; ++i)  // ascending, as the formats' own; some with equal levels
    for (int64_t j = 0; j < levels; ++j)
      table.data()[i * levels + j] = static_cast<int16_t>((j - levels / 2) * (i % 16) * (grid_bits == 4 ? 2 : 8) + i / 16);
  Buffer<uint8_t> g_codes(count * bits / 8), g_grids(count * grid_bits / 8 / group), g_scales(rows * 2);
  const GridFormat format{bits, group, grid_bits, table.data()};
  const int64_t bad_row = k.quantize_grids(source, {format, g_codes.data(), g_grids.data(), g_scales.data()}, rows,
                                           static_cast<int>(cols), counts);
  found += std::to_string(bad_row);
  if (bad_row < 0)
    found += bytes_of(g_codes.data(), count * bits / 8) + bytes_of(g_grids.data(), count * grid_bits / 8 / group) +
             bytes_of(g_scales.data(), rows * 2);
  g_codes.fill(in), g_grids.fill(in), g_scales.fill(in);
  k.dequantize_grids({format, g_codes.data(), g_grids.data(), g_scales.data()}, rows, static_cast<int>(cols), weights.data());
  return found;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string first;
  for (const Kernels* const* set = available_kernels(); *set; ++set) {
    const std::string found = one_set(**set, FuzzedDataProvider(data, size));
    if (set == available_kernels()) first = found;
    if (found != first) std::abort();
  }
  return 0;
}
