// Feeds the engine's CPU kernels any shapes, codes, scales, grids, routes and activations that the bindings let through,
// in buffers of exact size, on every instruction set of this machine.
#include "buffers.h"
#include "kernels.h"

using namespace moepack;

namespace moepack {
namespace baseline { extern const Kernels table; }
namespace avx2 { extern const Kernels table; }
namespace avx512 { extern const Kernels table; }
namespace avx512vnni { extern const Kernels table; }
}  // namespace moepack

namespace {

struct Known {
  Kind kind;
  int64_t bits, grids_per_byte;
};
constexpr Known KNOWN[] = {{Kind::affine2, 2, 0}, {Kind::affine3, 3, 0}, {Kind::affine4, 4, 0}, {Kind::affine6, 6, 0},
                           {Kind::affine8, 8, 0}, {Kind::steps2, 2, 1},  {Kind::steps3, 3, 1},  {Kind::books2, 2, 2},
                           {Kind::books3, 3, 2},  {Kind::bf16, 16, 0},   {Kind::f16, 16, 0},    {Kind::f32, 32, 0}};

struct Held {
  Matrix view;
  Buffer<uint8_t> codes, scales, biases, grids, books;
  Buffer<float> levels;
};

int64_t size_of(Scalar s) { return s == Scalar::f32 ? 4 : 2; }

Held any_matrix(FuzzedDataProvider& in, int64_t rows, int64_t cols) {
  const Known known = KNOWN[in.ConsumeIntegralInRange<size_t>(0, std::size(KNOWN) - 1)];
  Scalar scalar = static_cast<Scalar>(in.ConsumeIntegralInRange<int>(0, 2));
  int64_t group = 0, scale_count = 0, grid_bytes = 0;
  if (known.bits >= 16) {
    scalar = known.kind == Kind::bf16 ? Scalar::bf16 : known.kind == Kind::f16 ? Scalar::f16 : Scalar::f32;
  } else if (known.grids_per_byte) {
    scalar = Scalar::bf16;
    group = (in.ConsumeBool() ? 16 : 32) / known.grids_per_byte;
    scale_count = rows, grid_bytes = rows * cols / (group * known.grids_per_byte);
  } else {
    group = int64_t{32} << in.ConsumeIntegralInRange<int>(0, 2);
    while (cols % group) group /= 2;
    scale_count = rows * cols / group;
  }
  const int64_t row_bytes = cols * known.bits / 8, entry = (known.grids_per_byte ? known.grids_per_byte : 1) << known.bits;
  const bool books = known.grids_per_byte == 2;
  Held held{{}, Buffer<uint8_t>(rows * row_bytes), Buffer<uint8_t>(scale_count * size_of(scalar)),
            Buffer<uint8_t>(known.grids_per_byte ? 0 : scale_count * size_of(scalar)), Buffer<uint8_t>(grid_bytes),
            Buffer<uint8_t>(books ? 16 << known.bits : 0), Buffer<float>(known.grids_per_byte ? 256 * entry : 0)};
  held.codes.fill(in), held.scales.fill(in), held.biases.fill(in), held.grids.fill(in), held.books.fill(in);
  for (int64_t i = 0; known.grids_per_byte && i < 256 * entry; ++i) held.levels.data()[i] = static_cast<float>(i % 255 - 127);
  held.view = {known.kind, scalar, rows, cols, group, row_bytes, held.codes.data(), held.scales.data(),
               known.grids_per_byte ? nullptr : held.biases.data(), known.grids_per_byte ? held.grids.data() : nullptr,
               known.grids_per_byte ? held.levels.data() : nullptr, books ? held.books.data() : nullptr};
  return held;
}

struct HeldRows {
  Rows view;
  Buffer<uint8_t> rounded;
};

HeldRows rows_for(const Kernels& k, const Matrix& m, const float* base, int64_t count, int64_t cols, const int32_t* index,
                  int64_t shown, bool exact) {
  const int64_t planes = exact ? 0 : k.planes(m.kind);
  HeldRows held{{base, index, shown, cols}, Buffer<uint8_t>(planes ? count * rounded_bytes(cols) : 0)};
  for (int64_t t = 0; planes && t < count; ++t)
    k.round_row(base + t * cols, cols, planes, shown >= k.fewest_in_panels(m.kind) ? Order::lanes : Order::chunks,
                held.rounded.data() + t * rounded_bytes(cols));
  if (planes) held.view.rounded = held.rounded.data();
  return held;
}

void products(const Kernels& k, FuzzedDataProvider& in) {
  const int64_t rows = in.ConsumeIntegralInRange<int64_t>(1, 70), cols = 32 * in.ConsumeIntegralInRange<int64_t>(1, 40);
  const int64_t count = in.ConsumeIntegralInRange<int64_t>(1, 9), shown = in.ConsumeIntegralInRange<int64_t>(1, 9);
  Held gate = any_matrix(in, rows, cols), up = any_matrix(in, rows, cols);
  Buffer<float> x(count * cols);
  x.fill(in);
  Buffer<int32_t> index(shown), to(shown);
  for (int64_t t = 0; t < shown; ++t) {
    index.data()[t] = in.ConsumeIntegralInRange<int32_t>(0, static_cast<int32_t>(count) - 1);
    to.data()[t] = in.ConsumeIntegralInRange<int32_t>(0, static_cast<int32_t>(count) - 1);
  }
  const bool exact = in.ConsumeBool();
  HeldRows for_gate = rows_for(k, gate.view, x.data(), count, cols, index.data(), shown, exact);
  HeldRows for_up = rows_for(k, up.view, x.data(), count, cols, index.data(), shown, exact);
  const int64_t most = std::max(k.product_scratch(gate.view), k.product_scratch(up.view));
  Buffer<float> scratch(most), y(shown * rows), h(shown * rows), sum(count * rows), weights(shown), one(cols);
  sum.fill(in), weights.fill(in);
  const int64_t cut = std::min(rows, 32 * in.ConsumeIntegralInRange<int64_t>(0, 3));  // pieces begin at whole panels
  for (const auto [first, last] : {std::pair(int64_t{0}, cut), std::pair(cut, rows)}) {
    if (first == last) continue;
    k.matmul(gate.view, for_gate.view, y.data(), rows, first, last, scratch.data());
    k.swiglu(gate.view, up.view, for_gate.view, for_up.view, h.data(), rows, first, last, scratch.data());
    k.accumulate(up.view, for_up.view, to.data(), weights.data(), sum.data(), rows, first, last, scratch.data());
  }
  k.row(gate.view, in.ConsumeIntegralInRange<int64_t>(0, rows - 1), one.data());
}

void choices(const Kernels& k, FuzzedDataProvider& in) {
  const int64_t count = in.ConsumeIntegralInRange<int64_t>(1, 600), wanted = in.ConsumeIntegralInRange<int64_t>(1, count);
  Buffer<float> logits(count), weights(wanted), scratch(count), y(count);
  Buffer<int32_t> ids(wanted);
  logits.fill(in), y.fill(in);
  k.route(logits.data(), count, wanted, ids.data(), weights.data(), scratch.data());
  for (int64_t i = 0; i < wanted; ++i)
    if (ids.data()[i] < 0 || ids.data()[i] >= count || !(weights.data()[i] >= 0 && weights.data()[i] <= 1)) std::abort();
  k.rms_norm(logits.data(), y.data(), 1e-6f, y.data(), count);
  k.add_share(logits.data(), 0.5f, y.data(), count);
  k.add_gated(logits.data(), in.ConsumeFloatingPoint<float>(), y.data(), count);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Kernels& best = kernels();
  static const Kernels* const sets[] = {&baseline::table, &avx2::table, &avx512::table, &avx512vnni::table};
  static const size_t known = [] {
    for (size_t i = 0; i < std::size(sets); ++i)
      if (sets[i] == &best) return i + 1;
    return size_t{1};
  }();
  for (size_t i = 0; i < known; ++i) {
    FuzzedDataProvider in(data, size);
    in.ConsumeBool() ? products(*sets[i], in) : choices(*sets[i], in);
  }
  return 0;
}
