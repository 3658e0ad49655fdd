#include "activations.h"

namespace moepack {

namespace {

constexpr int64_t ROWS_AT_ONCE = 8;

int64_t place_of(int64_t planes) { return planes == 4 ? 2 : planes - 1; }

// The numpy array that activations are of lives as long as they do.
struct HeldActivations : Activations {
  HeldActivations(Array<const float, 2> x, bool exact)
      : Activations(x.data(), extent(x, 0), extent(x, 1), exact ? Precision::exact : Precision::rounded),
        kept(nb::cast(x)) {}
  nb::object kept;
};

}  // namespace

static_assert(rounded_bytes(STRETCH) % 64 == 0);  // loads that cross cache lines take twice as long

Rows Activations::rows(Pool& pool, Kind kind, Precision matrix) {
  return matrix == Precision::exact ? Rows{base_, nullptr, count_, width_} : chosen(pool, kind, nullptr, count_);
}

Rows Activations::chosen(Pool& pool, Kind kind, const int32_t* index, int64_t count) {
  const int64_t planes = precision_ == Precision::exact ? 0 : kernels().planes(kind);
  const Order order = count < kernels().fewest_in_panels(kind) ? Order::chunks : Order::lanes;
  return {base_, index, count, width_, planes && count > 0 ? rounded(pool, planes, order) : nullptr};
}

const uint8_t* Activations::rounded(Pool& pool, int64_t planes, Order order) {
  Room<uint8_t>& to = rounded_[static_cast<size_t>(order)][place_of(planes)];
  if (!to) {
    const int64_t size = rounded_bytes(width_);
    to = room_for<uint8_t>(count_ * size);
    pool.run(count_, ROWS_AT_ONCE, [&](int64_t first, int64_t last, int) {
      for (int64_t row = first; row < last; ++row)
        kernels().round_row(base_ + row * width_, width_, planes, order, to.get() + row * size);
    });
  }
  return to.get();
}

void bind_activations(nb::module_& m) {
  nb::class_<Activations>(m, "ActivationRows");
  nb::class_<HeldActivations, Activations>(m, "Activations")
      .def(nb::init<Array<const float, 2>, bool>(), exact("x"), nb::arg("exact") = false)
      .def_prop_ro("count", &HeldActivations::count);
}

}  // namespace moepack
