// simdgroup_matrix 8x8: two elements per lane. Metal does not say which; these are said to be those of Apple GPUs.
#pragma once

namespace msl {

constexpr unsigned ORDER = 8;

constexpr unsigned row_of(unsigned lane) { return (lane >> 4) << 2 | ((lane >> 1) & 3); }
constexpr unsigned column_of(unsigned lane) { return (lane >> 3 & 1) << 2 | (lane & 1) << 1; }
constexpr unsigned lane_of(unsigned row, unsigned column) {
  return (row >> 2) << 4 | (column >> 2) << 3 | (row & 3) << 1 | (column & 3) >> 1;
}

}  // namespace msl

namespace metal {

template <class T, int Columns, int Rows> struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "simdgroup_matrix is 8x8");
  vec<T, 2> elements;

  simdgroup_matrix() = default;
  explicit simdgroup_matrix(vec<T, 2> elements) : elements(elements) {}
  explicit simdgroup_matrix(T diagonal, MSL_SITE) {
    const uint lane = msl::give(0u, site).lane;
    for (uint i = 0; i < 2; ++i) elements[i] = msl::row_of(lane) == msl::column_of(lane) + i ? diagonal : T(0);
  }
  thread vec<T, 2>& thread_elements() { return elements; }
  const thread vec<T, 2>& thread_elements() const { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int C, int R> inline simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T value) {
  return simdgroup_matrix<T, C, R>(vec<T, 2>(value));
}

#define MSL_ELEMENT                                                                                         \
  const ulong row = msl::row_of(lane), column = msl::column_of(lane) + i;                                   \
  auto* at = memory + (transpose ? (column + origin.y) * stride + row + origin.x                            \
                                 : (row + origin.y) * stride + column + origin.x);                          \
  static_assert(is_same_v<typename msl::Spaced<P>::Plain, T>, "a matrix is of its memory's type")
template <class T, class P>
inline void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& matrix, P* memory, ulong stride = 8, ulong2 origin = 0,
                           bool transpose = false, MSL_SITE) {
  const uint lane = msl::give(0u, site).lane;
  for (uint i = 0; i < 2; ++i) {
    MSL_ELEMENT;
    msl::touch(at, msl::READ, site);
    matrix.elements[i] = *at;
  }
}
template <class T, class P>
inline void simdgroup_store(simdgroup_matrix<T, 8, 8> matrix, P* memory, ulong stride = 8, ulong2 origin = 0,
                            bool transpose = false, MSL_SITE) {
  const uint lane = msl::give(0u, site).lane;
  for (uint i = 0; i < 2; ++i) {
    MSL_ELEMENT;
    msl::touch(at, msl::WRITE, site);
    *at = matrix.elements[i];
  }
}
#undef MSL_ELEMENT

// result = a * b + c, summed in float32 in the order of a's columns.
template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>& result, simdgroup_matrix<A, 8, 8> a,
                                          simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c, MSL_SITE) {
  struct Both {
    A a[2];
    B b[2];
  };
  const msl::Given<Both> given = msl::give(Both{{a.elements[0], a.elements[1]}, {b.elements[0], b.elements[1]}}, site);
  const uint row = msl::row_of(given.lane), column = msl::column_of(given.lane);
  float sums[2] = {float(c.elements[0]), float(c.elements[1])};
  for (uint k = 0; k < msl::ORDER; ++k) {
    const float left = float(given[msl::lane_of(row, k)].a[k & 1]);
    const Both right = given[msl::lane_of(k, column)];
    for (uint i = 0; i < 2; ++i) sums[i] = __builtin_fmaf(left, float(right.b[i]), sums[i]);
  }
  for (uint i = 0; i < 2; ++i) result.elements[i] = D(sums[i]);
}
template <class D, class A, class B>
inline void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& result, simdgroup_matrix<A, 8, 8> a,
                               simdgroup_matrix<B, 8, 8> b, MSL_SITE) {
  simdgroup_multiply_accumulate(result, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)), site);
}

}  // namespace metal
