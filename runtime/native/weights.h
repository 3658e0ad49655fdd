// Python's handles on stored weights: a matrix that keeps its arrays alive, and the layout of an expert record.
#pragma once

#include <utility>
#include <vector>

#include "../kernels/cpu/kernels.h"
#include "activations.h"
#include "arrays.h"

namespace moepack {

struct HeldMatrix {
  Matrix view;
  std::vector<nb::object> kept;  // what `view` points at
  Precision precision = Precision::rounded;
};

// A grid format's levels as the kernels want them: of the grids that each byte names, as floats on whole cache lines.
class Levels {
 public:
  explicit Levels(Array<const int16_t, 2> table);  // [grids, levels], 256 grids or 16
  const float* data() const { return lines_.data()->floats; }
  const uint8_t* books() const { return books_.empty() ? nullptr : books_.data(); }
  int64_t bits, grids_per_byte;

 private:
  struct alignas(64) Line {
    float floats[16];
  };
  std::vector<Line> lines_;
  std::vector<uint8_t> books_;  // of sixteen codebooks, the levels plus 128
};

// How the codes of a matrix are stored, and how many bytes each of its arrays has.
struct Coding {
  Kind kind;
  int64_t bits, group, grids_per_byte = 0;  // without grids per byte it is affine
  void require_fit(int64_t rows, int64_t cols) const;
  int64_t row_bytes(int64_t cols) const { return cols * bits / 8; }
  int64_t grid_bytes(int64_t rows, int64_t cols) const { return rows * cols / (group * grids_per_byte); }
  int64_t scale_count(int64_t rows, int64_t cols) const { return grids_per_byte ? rows : rows * (cols / group); }
};

// Where one projection's components lie in a record; scales and biases are bf16. `extra` is biases or grids.
struct Projection {
  Coding coding;
  int64_t codes, scales, extra;
  const Levels* levels = nullptr;
  nb::object kept;  // the levels' owner
};

// Expert records of one layer: gate, up and down.
class RecordViews {
 public:
  RecordViews(int64_t hidden, int64_t intermediate, std::vector<Projection> projections, int64_t size);
  Expert expert(const uint8_t* record) const;
  int64_t hidden, intermediate, size;

 private:
  std::pair<int64_t, int64_t> shape(size_t projection) const;  // rows, cols
  std::vector<Projection> projections_;
};

void bind_weights(nb::module_& m);

}  // namespace moepack
