// The maths functions, each in float32 and rounded to the type it is asked in. The fast and precise ones are the same.
#pragma once

namespace metal {

#define MSL_UNARY(name, result)                                                        \
  inline float name(float x) { return result; }                                        \
  inline half name(half x) { return half(name(float(x))); }                            \
  inline bfloat name(bfloat x) { return bfloat(name(float(x))); }                      \
  template <class T, int N> inline vec<T, N> name(vec<T, N> x) {                       \
    for (int i = 0; i < N; ++i) x[i] = name(T(x[i]));                                  \
    return x;                                                                          \
  }
#define MSL_BINARY(name, result)                                                       \
  inline float name(float x, float y) { return result; }                               \
  inline half name(half x, half y) { return half(name(float(x), float(y))); }          \
  inline bfloat name(bfloat x, bfloat y) { return bfloat(name(float(x), float(y))); }  \
  template <class T, int N> inline vec<T, N> name(vec<T, N> x, vec<T, N> y) {          \
    for (int i = 0; i < N; ++i) x[i] = name(T(x[i]), T(y[i]));                         \
    return x;                                                                          \
  }
MSL_UNARY(acos, __builtin_acosf(x)) MSL_UNARY(asin, __builtin_asinf(x)) MSL_UNARY(atan, __builtin_atanf(x))
MSL_UNARY(cos, __builtin_cosf(x)) MSL_UNARY(sin, __builtin_sinf(x)) MSL_UNARY(tan, __builtin_tanf(x))
MSL_UNARY(cosh, __builtin_coshf(x)) MSL_UNARY(sinh, __builtin_sinhf(x)) MSL_UNARY(tanh, __builtin_tanhf(x))
MSL_UNARY(exp, __builtin_expf(x)) MSL_UNARY(exp2, __builtin_exp2f(x)) MSL_UNARY(exp10, __builtin_powf(10.0f, x))
MSL_UNARY(log, __builtin_logf(x)) MSL_UNARY(log2, __builtin_log2f(x)) MSL_UNARY(log10, __builtin_log10f(x))
MSL_UNARY(sqrt, __builtin_sqrtf(x)) MSL_UNARY(rsqrt, 1.0f / __builtin_sqrtf(x)) MSL_UNARY(fabs, __builtin_fabsf(x))
MSL_UNARY(floor, __builtin_floorf(x)) MSL_UNARY(ceil, __builtin_ceilf(x)) MSL_UNARY(trunc, __builtin_truncf(x))
MSL_UNARY(rint, __builtin_rintf(x)) MSL_UNARY(round, __builtin_roundf(x))
MSL_UNARY(fract, __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f))
MSL_UNARY(sign, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x == 0.0f ? x : 0.0f)
MSL_UNARY(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f))
MSL_BINARY(pow, __builtin_powf(x, y)) MSL_BINARY(powr, __builtin_powf(x, y)) MSL_BINARY(fmod, __builtin_fmodf(x, y))
MSL_BINARY(fmax, __builtin_fmaxf(x, y)) MSL_BINARY(fmin, __builtin_fminf(x, y))
MSL_BINARY(atan2, __builtin_atan2f(x, y))
MSL_BINARY(copysign, __builtin_copysignf(x, y)) MSL_BINARY(step, y < x ? 0.0f : 1.0f)
#undef MSL_UNARY
#undef MSL_BINARY

// Component by component; half and bfloat round once, as the operation itself does.
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline half fma(half a, half b, half c) { return half(__builtin_fmaf(float(a), float(b), float(c))); }
inline bfloat fma(bfloat a, bfloat b, bfloat c) { return bfloat(__builtin_fmaf(float(a), float(b), float(c))); }
template <class T, int N> inline vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) {
  for (int i = 0; i < N; ++i) a[i] = fma(T(a[i]), T(b[i]), T(c[i]));
  return a;
}
inline float ldexp(float x, int exponent) { return __builtin_ldexpf(x, exponent); }
inline float sincos(float x, thread float& cosine) {
  cosine = __builtin_cosf(x);
  return __builtin_sinf(x);
}
inline float modf(float x, thread float& whole) {
  whole = __builtin_truncf(x);
  return __builtin_copysignf(x - whole, x);
}

// Of a number and a NaN, max and min give the number.
template <class T> inline T max(T x, T y) {
  if constexpr (msl::Vector<T>::width > 1) {
    typedef typename msl::Vector<T>::Element Element;
    for (int i = 0; i < msl::Vector<T>::width; ++i) x[i] = max(Element(x[i]), Element(y[i]));
    return x;
  } else {
    return x < y || x != x ? y : x;
  }
}
template <class T> inline T min(T x, T y) {
  if constexpr (msl::Vector<T>::width > 1) {
    typedef typename msl::Vector<T>::Element Element;
    for (int i = 0; i < msl::Vector<T>::width; ++i) x[i] = min(Element(x[i]), Element(y[i]));
    return x;
  } else {
    return y < x || x != x ? y : x;
  }
}
template <class T, int N> inline vec<T, N> max(vec<T, N> x, T y) { return max(x, vec<T, N>(y)); }
template <class T, int N> inline vec<T, N> min(vec<T, N> x, T y) { return min(x, vec<T, N>(y)); }
template <class T> inline T max3(T x, T y, T z) { return max(x, max(y, z)); }
template <class T> inline T min3(T x, T y, T z) { return min(x, min(y, z)); }
template <class T> inline T clamp(T x, T low, T high) { return min(max(x, low), high); }
template <class T, int N> inline vec<T, N> clamp(vec<T, N> x, T low, T high) { return min(max(x, low), high); }
template <class T> inline T mix(T x, T y, T part) { return x + (y - x) * part; }
template <class T> inline T abs(T x) {
  if constexpr (msl::Vector<T>::width > 1) {
    for (int i = 0; i < msl::Vector<T>::width; ++i) x[i] = abs(typename msl::Vector<T>::Element(x[i]));
    return x;
  } else {
    return x < T(0) ? T(-x) : x == T(0) ? T(0) : x;
  }
}

template <class T, class C> inline T select(T otherwise, T chosen, C condition) {
  if constexpr (msl::Vector<C>::width > 1) {
    for (int i = 0; i < msl::Vector<T>::width; ++i) otherwise[i] = condition[i] ? chosen[i] : otherwise[i];
    return otherwise;
  } else {
    return condition ? chosen : otherwise;
  }
}
template <class V> inline bool any(V x) {
  bool found = false;
  for (int i = 0; i < msl::Vector<V>::width; ++i) found = found || x[i];
  return found;
}
template <class V> inline bool all(V x) {
  bool every = true;
  for (int i = 0; i < msl::Vector<V>::width; ++i) every = every && x[i];
  return every;
}
inline bool isnan(float x) { return x != x; }
inline bool isinf(float x) { return __builtin_fabsf(x) == __builtin_inff(); }
inline bool isfinite(float x) { return __builtin_fabsf(x) < __builtin_inff(); }
inline bool signbit(float x) { return __builtin_bit_cast(int, x) < 0; }

template <class T, int N> inline T dot(vec<T, N> x, vec<T, N> y) {
  T sum = x[0] * y[0];
  for (int i = 1; i < N; ++i) sum += x[i] * y[i];
  return sum;
}
template <class T, int N> inline T length_squared(vec<T, N> x) { return dot(x, x); }
template <class T, int N> inline T length(vec<T, N> x) { return sqrt(dot(x, x)); }
template <class T, int N> inline vec<T, N> normalize(vec<T, N> x) { return x * rsqrt(dot(x, x)); }

template <class T> inline T popcount(T x) {
  constexpr ulong MASK = ~0ul >> (64 - 8 * sizeof(T));
  return T(__builtin_popcountl(ulong(x) & MASK));
}
template <class T> inline T clz(T x) {
  constexpr ulong MASK = ~0ul >> (64 - 8 * sizeof(T));
  return T((ulong(x) & MASK) == 0 ? 8 * sizeof(T) : __builtin_clzl(ulong(x) & MASK) - (64 - 8 * sizeof(T)));
}
template <class T> inline T ctz(T x) { return T(x == T(0) ? 8 * sizeof(T) : __builtin_ctzl(ulong(x))); }
inline uint mulhi(uint x, uint y) { return uint((ulong(x) * y) >> 32); }
inline int mulhi(int x, int y) { return int((long(x) * y) >> 32); }
inline uint rotate(uint x, uint by) { return x << (by & 31) | x >> (-by & 31); }
inline uint extract_bits(uint x, uint offset, uint bits) {
  return bits == 0 ? 0 : (x >> offset) & (0xffffffffu >> (32 - bits));
}
inline int extract_bits(int x, uint offset, uint bits) {
  return bits == 0 ? 0 : int(uint(x) << (32 - offset - bits)) >> (32 - bits);
}

#define MSL_NAMED_AGAIN                                                                                         \
  using metal::acos; using metal::asin; using metal::atan; using metal::cos; using metal::sin; using metal::tan; \
  using metal::cosh; using metal::sinh; using metal::tanh; using metal::exp; using metal::exp2; using metal::exp10; \
  using metal::log; using metal::log2; using metal::log10; using metal::sqrt; using metal::rsqrt; using metal::fabs; \
  using metal::floor; using metal::ceil; using metal::trunc; using metal::rint; using metal::round; \
  using metal::fract; \
  using metal::pow; using metal::powr; using metal::fmod; using metal::fmax; using metal::fmin; using metal::atan2; \
  using metal::fma; using metal::max; using metal::min; using metal::clamp; using metal::abs; using metal::sincos;
namespace precise { MSL_NAMED_AGAIN }
namespace fast { MSL_NAMED_AGAIN }
#undef MSL_NAMED_AGAIN

}  // namespace metal
