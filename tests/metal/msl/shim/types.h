// Scalars, vectors and their constructors, type traits and limits.
#pragma once

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef unsigned long size_t;
typedef long ptrdiff_t;
typedef _Float16 half;
typedef __bf16 bfloat;

#define MSL_VECTORS(T)                                   \
  typedef T T##2 __attribute__((ext_vector_type(2)));    \
  typedef T T##3 __attribute__((ext_vector_type(3)));    \
  typedef T T##4 __attribute__((ext_vector_type(4)));    \
  typedef T packed_##T##2 __attribute__((ext_vector_type(2), aligned(sizeof(T)))); \
  typedef T packed_##T##4 __attribute__((ext_vector_type(4), aligned(sizeof(T))));
MSL_VECTORS(char) MSL_VECTORS(uchar) MSL_VECTORS(short) MSL_VECTORS(ushort) MSL_VECTORS(int) MSL_VECTORS(uint)
MSL_VECTORS(long) MSL_VECTORS(ulong) MSL_VECTORS(float) MSL_VECTORS(half) MSL_VECTORS(bfloat)
#undef MSL_VECTORS
typedef bool bool2 __attribute__((ext_vector_type(2)));
typedef bool bool3 __attribute__((ext_vector_type(3)));
typedef bool bool4 __attribute__((ext_vector_type(4)));

namespace metal {

template <class T, int N> using vec = T __attribute__((ext_vector_type(N)));

template <class T, T V> struct integral_constant {
  static constexpr T value = V;
  constexpr operator T() const { return V; }
};
typedef integral_constant<bool, true> true_type;
typedef integral_constant<bool, false> false_type;
template <class A, class B> struct is_same : false_type {};
template <class A> struct is_same<A, A> : true_type {};
template <class A, class B> constexpr bool is_same_v = is_same<A, B>::value;
template <bool C, class A, class B> struct conditional {
  typedef A type;
};
template <class A, class B> struct conditional<false, A, B> {
  typedef B type;
};
template <bool C, class A, class B> using conditional_t = typename conditional<C, A, B>::type;
template <bool C, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> {
  typedef T type;
};
template <bool C, class T = void> using enable_if_t = typename enable_if<C, T>::type;
template <class T> struct is_floating_point : false_type {};
template <> struct is_floating_point<float> : true_type {};
template <> struct is_floating_point<half> : true_type {};
template <> struct is_floating_point<bfloat> : true_type {};
template <class T> constexpr bool is_floating_point_v = is_floating_point<T>::value;

template <class T> struct numeric_limits {
  static constexpr T min() { return T(-1) < T(0) ? T(T(1) << (8 * sizeof(T) - 1)) : T(0); }
  static constexpr T lowest() { return min(); }
  static constexpr T max() { return T(~min()); }
};
#define MSL_FLOAT_LIMITS(T, LEAST, MOST, EPSILON)                      \
  template <> struct numeric_limits<T> {                               \
    static constexpr T min() { return T(LEAST); }                      \
    static constexpr T max() { return T(MOST); }                       \
    static constexpr T lowest() { return T(-MOST); }                   \
    static constexpr T epsilon() { return T(EPSILON); }                \
    static constexpr T infinity() { return T(__builtin_inff()); }      \
    static constexpr T quiet_NaN() { return T(__builtin_nanf("")); }   \
  };
MSL_FLOAT_LIMITS(float, __FLT_MIN__, __FLT_MAX__, __FLT_EPSILON__)
MSL_FLOAT_LIMITS(half, 6.103515625e-05f, 65504.0f, 0.0009765625f)
MSL_FLOAT_LIMITS(bfloat, __FLT_MIN__, 3.38953139e38f, 0.0078125f)
#undef MSL_FLOAT_LIMITS

template <class To, class From> inline To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs two types of one size");
  return __builtin_bit_cast(To, from);
}

}  // namespace metal

namespace msl {

template <class T> struct Vector {
  static constexpr int width = 1;
  typedef T Element;
};
template <class T, int N> struct Vector<metal::vec<T, N>> {
  static constexpr int width = N;
  typedef T Element;
};

template <class V, class Part> inline void append(V& vector, int& at, Part part) {
  typedef typename Vector<V>::Element Element;
  if constexpr (Vector<Part>::width == 1)
    vector[at++] = Element(part);
  else
    for (int i = 0; i < Vector<Part>::width; ++i) vector[at++] = Element(part[i]);
}

// float4(a, b.xyz), float4(0): in MSL a vector is made of scalars and vectors, or of one scalar for all its components.
template <class V, class... Parts> inline V make(Parts... parts) {
  constexpr int given = (0 + ... + Vector<Parts>::width);
  V vector{};
  if constexpr (sizeof...(Parts) == 1 && given == 1) {
    vector = V(typename Vector<V>::Element(parts)...);
  } else if constexpr (sizeof...(Parts) > 0) {
    static_assert(given == Vector<V>::width, "a vector is made of as many components as it has");
    int at = 0;
    (append(vector, at, parts), ...);
  }
  return vector;
}

}  // namespace msl

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define MAXFLOAT __FLT_MAX__
#define FLT_MAX __FLT_MAX__
#define FLT_MIN __FLT_MIN__
#define FLT_EPSILON __FLT_EPSILON__
#define HALF_MAX half(65504.0f)
#define INT_MAX 2147483647
#define INT_MIN (-INT_MAX - 1)
#define UINT_MAX 4294967295u
#define M_PI_F 3.14159265358979323846f
#define M_1_PI_F 0.318309886183790671538f
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.693147180559945309417f
#define M_SQRT2_F 1.41421356237309504880f
