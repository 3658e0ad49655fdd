#include "activations.h"

namespace moepack {

namespace {

constexpr int64_t ROWS_AT_ONCE = 8;

int64_t place_of(int64_t planes) { return planes == 4 ? 2 : planes - 1; }

// The numpy array that activations are of lives as long as they do.
struct HeldActivations : Activations {
  HeldActivations(Array<const float, 2> x, bool exact)
      : Activations(x.data(), extent(x, 0), extent(x, 1), exact), kept(nb::cast(x)) {}
  nb::object kept;
};

}  // namespace

static_assert(rounded_bytes(STRETCH) % 64 == 0);

RoundedRows::RoundedRows(int64_t rows, int64_t cols)
    : lines_per_row_(rounded_bytes(cols) / 64),
      lines_(std::make_unique_for_overwrite<Line[]>(static_cast<size_t>(rows * lines_per_row_))) {}

Rows Activations::rows(Pool& pool, Kind kind, bool exact) {
  return exact ? Rows{base_, nullptr, count_, width_} : chosen(pool, kind, nullptr, count_);
}

Rows Activations::chosen(Pool& pool, Kind kind, const int32_t* index, int64_t count) {
  const int64_t planes = exact_ ? 0 : kernels().planes(kind);
  const Order order = count < FEWEST_IN_PANELS ? Order::chunks : Order::lanes;
  return {base_, index, count, width_, planes && count > 0 ? rounded(pool, planes, order) : nullptr};
}

const uint8_t* Activations::rounded(Pool& pool, int64_t planes, Order order) {
  RoundedRows& to = rounded_[static_cast<size_t>(order)][place_of(planes)];
  if (to.empty()) {
    to = RoundedRows(count_, width_);
    pool.run(count_, ROWS_AT_ONCE, [&](int64_t first, int64_t last, int) {
      for (int64_t row = first; row < last; ++row)
        kernels().round_row(base_ + row * width_, width_, planes, order, to.row(row));
    });
  }
  return to.row(0);
}

void bind_activations(nb::module_& m) {
  nb::class_<Activations>(m, "ActivationRows");
  nb::class_<HeldActivations, Activations>(m, "Activations")
      .def(nb::init<Array<const float, 2>, bool>(), exact("x"), nb::arg("exact") = false)
      .def_prop_ro("count", &HeldActivations::count);
}

}  // namespace moepack
