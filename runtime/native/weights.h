// Python's handles on stored weights: a matrix that keeps its arrays alive, and the layout of an expert record.
#pragma once

#include <array>
#include <vector>

#include "../kernels/cpu/kernels.h"
#include "arrays.h"

namespace moepack {

struct HeldMatrix {
  Matrix view;
  nb::object data, scales, biases;  // keep what `view` points at alive
};

// Where one projection's components lie in a record.
struct Projection {
  int64_t bits, group, codes, scales, biases;
};

// Expert records of one layer: byte offsets of gate, up and down; scales and biases are bf16.
class RecordViews {
 public:
  RecordViews(int64_t hidden, int64_t intermediate, std::vector<Projection> projections, int64_t size);
  Expert expert(const uint8_t* record) const;
  int64_t hidden, intermediate, size;

 private:
  std::vector<Projection> projections_;
};

Kind affine_kind(int64_t bits);
void bind_weights(nb::module_& m);

}  // namespace moepack
