// Rows of float activations and, once a matrix asks for them, the same rows rounded to fifteen bits.
#pragma once

#include "../kernels/cpu/kernels.h"
#include "arrays.h"
#include "memory.h"
#include "pool.h"

namespace moepack {

// What products with quantized matrices may see: activations rounded, where there is a kernel for that, or as they are.
enum class Precision { rounded, exact };

class Activations {
 public:
  // Views `count` rows of `width` floats, which must outlive it.
  Activations(const float* base, int64_t count, int64_t width, Precision precision)
      : base_(base), count_(count), width_(width), precision_(precision) {}

  int64_t count() const { return count_; }
  int64_t width() const { return width_; }
  Precision precision() const { return precision_; }

  // Views of rows as a product with a matrix of this kind wants them, valid as long as this object. They round what
  // nobody has yet: call them before work is shared out, and without the GIL.
  Rows rows(Pool& pool, Kind kind, Precision matrix = Precision::rounded);
  // The rows of an index, which must live as long as the view.
  Rows chosen(Pool& pool, Kind kind, const int32_t* index, int64_t count);

 private:
  const uint8_t* rounded(Pool& pool, int64_t planes, Order order);

  const float* base_;
  int64_t count_, width_;
  Precision precision_;
  Room<uint8_t> rounded_[2][3];  // by order; by planes: 1, 2, 4
};

void bind_activations(nb::module_& m);

}  // namespace moepack
