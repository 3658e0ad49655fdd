#include "activations.h"

namespace moepack {

namespace {

constexpr int64_t ROWS_AT_ONCE = 8;

int64_t place_of(int64_t planes) { return planes == 4 ? 2 : planes - 1; }

// to [fours][rows][4 bytes] = from [rows][fours][4 bytes], of rows index[first].. or first..
template <typename Four>
void interleave(const Four* from, int64_t fours, int64_t stride, const int32_t* index, int64_t first, int64_t rows, Four* to) {
  for (int64_t i = 0; i < fours; ++i)
    for (int64_t r = 0; r < rows; ++r) to[i * rows + r] = from[(index ? index[first + r] : first + r) * stride + i];
}

void tile(const Rounded& from, const int32_t* index, int64_t first, int64_t rows, const Rounded& to) {
  const int64_t blocks = from.width / BLOCK, fours = 2 * from.width / 4;
  interleave(reinterpret_cast<const int32_t*>(from.codes), fours, fours, index, first, rows,
             reinterpret_cast<int32_t*>(to.codes) + first * fours);
  interleave(from.scales, blocks, blocks, index, first, rows, to.scales + first * blocks);
  interleave<int32_t>(from.offsets, blocks, blocks, index, first, rows, to.offsets + first * blocks);
  interleave(from.sums, 3 * blocks, 3 * blocks, index, first, rows, to.sums + first * 3 * blocks);
}

// The rows of an index (or the first ones), in tiles.
RoundedRows tiles(Pool& pool, const Rounded& from, const int32_t* index, int64_t count) {
  RoundedRows to(count, from.width);
  std::vector<int64_t> starts = {0};
  while (starts.back() < count) starts.push_back(starts.back() + kernels().tile_rows(count - starts.back()));
  pool.run(static_cast<int64_t>(starts.size()) - 1, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = starts[static_cast<size_t>(i)], last = starts[static_cast<size_t>(i + 1)];
      tile(from, index, first, last - first, to.view());
    }
  });
  return to;
}

// The numpy array that activations are of lives as long as they do.
struct HeldActivations : Activations {
  HeldActivations(Array<const float, 2> x, bool exact)
      : Activations(x.data(), extent(x, 0), extent(x, 1), exact), kept(nb::cast(x)) {}
  nb::object kept;
};

}  // namespace

RoundedRows::RoundedRows(int64_t rows, int64_t width) {
  const int64_t blocks = width / BLOCK, lines_of_codes = rows * width / 32, lines_of_floats = rows * blocks / 16;
  lines_.resize(static_cast<size_t>(lines_of_codes + 5 * lines_of_floats));
  uint8_t* const codes = lines_.data()->bytes;
  float* const floats = reinterpret_cast<float*>(codes + lines_of_codes * 64);
  int32_t* const offsets = reinterpret_cast<int32_t*>(floats + rows * blocks * 4);
  view_ = {width, reinterpret_cast<int8_t*>(codes), floats, offsets, floats + rows * blocks};
}

Rows Activations::rows(Pool& pool, Kind kind, bool exact) {
  const int64_t planes = exact || exact_ ? 0 : kernels().planes(kind);
  const RoundedRows* found = planes ? rounded(pool, planes) : nullptr;
  if (found && count_ >= FEWEST_IN_TILES) {
    RoundedRows& tiled = tiled_[place_of(planes)];
    if (tiled.empty()) tiled = tiles(pool, found->view(), nullptr, count_);
    found = &tiled;
  }
  return {base_, nullptr, count_, width_, found ? &found->view() : nullptr};
}

Rows Activations::chosen(Pool& pool, Kind kind, const int32_t* index, int64_t count, RoundedRows& room) {
  const int64_t planes = exact_ ? 0 : kernels().planes(kind);
  const RoundedRows* found = planes ? rounded(pool, planes) : nullptr;
  if (found && count >= FEWEST_IN_TILES) {
    room = tiles(pool, found->view(), index, count);
    found = &room;
  }
  return {base_, index, count, width_, found ? &found->view() : nullptr};
}

const RoundedRows* Activations::rounded(Pool& pool, int64_t planes) {
  RoundedRows& to = rounded_[place_of(planes)];
  if (to.empty()) {
    to = RoundedRows(count_, (width_ + STRETCH - 1) / STRETCH * STRETCH);
    pool.run(count_, ROWS_AT_ONCE, [&](int64_t first, int64_t last, int) {
      for (int64_t row = first; row < last; ++row)
        kernels().round_row(base_ + row * width_, width_, planes, row, to.view());
    });
  }
  return &to;
}

void bind_activations(nb::module_& m) {
  nb::class_<Activations>(m, "ActivationRows");
  nb::class_<HeldActivations, Activations>(m, "Activations")
      .def(nb::init<Array<const float, 2>, bool>(), exact("x"), nb::arg("exact") = false)
      .def_prop_ro("count", &HeldActivations::count);
}

}  // namespace moepack
