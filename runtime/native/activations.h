// Rows of float activations and, once a matrix asks for them, the same rows rounded to fifteen bits.
#pragma once

#include <vector>

#include "../kernels/cpu/kernels.h"
#include "arrays.h"
#include "pool.h"

namespace moepack {

// The arrays of rounded rows, each of whole cache lines: loads that cross them take twice as long.
class RoundedRows {
 public:
  RoundedRows() = default;
  RoundedRows(int64_t rows, int64_t width);
  const Rounded& view() const { return view_; }
  bool empty() const { return lines_.empty(); }

 private:
  struct alignas(64) Line {
    uint8_t bytes[64];
  };
  Rounded view_ = {};
  std::vector<Line> lines_;
};

class Activations {
 public:
  // Views `count` rows of `width` floats, which must outlive it. Exact ones are never rounded.
  Activations(const float* base, int64_t count, int64_t width, bool exact)
      : base_(base), count_(count), width_(width), exact_(exact) {}

  int64_t count() const { return count_; }
  int64_t width() const { return width_; }
  bool exact() const { return exact_; }

  // Views of rows as a product with a matrix of this kind wants them, valid as long as this object. They round and tile
  // what nobody has yet: call them before work is shared out, and without the GIL.
  Rows rows(Pool& pool, Kind kind, bool exact = false);
  // The rows of an index, which must live as long as the view; `room` holds their tiles.
  Rows chosen(Pool& pool, Kind kind, const int32_t* index, int64_t count, RoundedRows& room);

 private:
  const RoundedRows* rounded(Pool& pool, int64_t planes);

  const float* base_;
  int64_t count_, width_;
  bool exact_;
  RoundedRows rounded_[3], tiled_[3];  // by planes: 1, 2, 4
};

void bind_activations(nb::module_& m);

}  // namespace moepack
