// Address spaces, barriers, threadgroup variables, and how the library's own accesses reach the checker.
#pragma once

#define MSL_SPACE(n) __attribute__((address_space(n)))
#define device MSL_SPACE(1)
#define constant const MSL_SPACE(2)
#define threadgroup MSL_SPACE(3)
#define thread
#define METAL_FUNC inline __attribute__((always_inline))
#define METAL_CONST const
// The caller's place in its .metal file: the last parameter of every function that threads must reach together.
#define MSL_SITE ::msl::Site site = ::msl::Site{__builtin_FILE(), __builtin_LINE(), __builtin_COLUMN()}

namespace msl {

// A type without const and without its address space, and the number of that space.
template <class T> struct Spaced {
  typedef T Plain;
  static constexpr unsigned space = 0;
};
template <class T> struct Spaced<const T> : Spaced<T> {};
#define MSL_SPACED(qualifiers, n)                             \
  template <class T> struct Spaced<qualifiers MSL_SPACE(n) T> { \
    typedef T Plain;                                          \
    static constexpr unsigned space = n;                      \
  };
#define MSL_EVERY_SPACE(qualifiers) \
  MSL_SPACED(qualifiers, 1) MSL_SPACED(qualifiers, 2) MSL_SPACED(qualifiers, 3)
MSL_EVERY_SPACE() MSL_EVERY_SPACE(const) MSL_EVERY_SPACE(volatile) MSL_EVERY_SPACE(const volatile)
#undef MSL_EVERY_SPACE
#undef MSL_SPACED

template <class P> inline void touch([[maybe_unused]] P* address, [[maybe_unused]] unsigned access,
                                     [[maybe_unused]] Site site) {
#ifdef MSL_CHECKED
  if constexpr (Spaced<P>::space != 0)
    msl_check_here((const void*)address, sizeof(P), access, Spaced<P>::space, site);
#endif
}

template <class T> inline threadgroup T& variable(unsigned id, MSL_SITE) {
  return *(threadgroup T*)msl_threadgroup_variable(id, sizeof(T), site);
}

}  // namespace msl

namespace metal {

enum class mem_flags : unsigned {
  mem_none = 0,
  mem_device = msl::ORDERS_DEVICE,
  mem_threadgroup = msl::ORDERS_THREADGROUP,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8
};
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(unsigned(a) | unsigned(b)); }

inline void threadgroup_barrier(mem_flags flags, MSL_SITE) { msl::msl_threadgroup_barrier(unsigned(flags), site); }
inline void simdgroup_barrier(mem_flags flags, MSL_SITE) { msl::msl_simdgroup_barrier(unsigned(flags), site); }

}  // namespace metal
