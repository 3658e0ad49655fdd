// How numpy arrays cross into C++: C-contiguous, on the CPU, shapes checked before any pointer is used.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace moepack {

namespace nb = nanobind;

template <typename T, int N> using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using In1 = Array<const float, 1>;
using In2 = Array<const float, 2>;
using Out1 = Array<float, 1>;
using Out2 = Array<float, 2>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// An array argument that is taken as it is: by default nanobind passes a converted copy of one that does not fit, and
// what is written to it, now or by a read later, would be lost.
inline auto exact(const char* name) { return nb::arg(name).noconvert(); }

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

template <typename Any> int64_t extent(const Any& array, int axis) {
  return static_cast<int64_t>(array.shape(static_cast<size_t>(axis)));
}

}  // namespace moepack
