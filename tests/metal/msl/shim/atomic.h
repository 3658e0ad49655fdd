// Relaxed atomics of uint, int and float in device and threadgroup memory.
#pragma once

namespace msl {

constexpr unsigned ATOMIC_READ = READ | ATOMIC, ATOMIC_WRITE = WRITE | ATOMIC, ATOMIC_UPDATE = READ | WRITE | ATOMIC;

// Replaces *at by change(*at) in one step, and gives what was there.
template <class T, class F> inline T update(T* at, F change) {
  T before, after;
  __atomic_load(at, &before, __ATOMIC_RELAXED);
  do after = change(before);
  while (!__atomic_compare_exchange(at, &before, &after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

}  // namespace msl

namespace metal {

enum memory_order { memory_order_relaxed };
template <class T> struct atomic {
  T value;
};
typedef atomic<uint> atomic_uint;
typedef atomic<int> atomic_int;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;

#define MSL_UPDATE(SPACE, name, both)                                                                             \
  template <class T> inline T atomic_##name##_explicit(volatile SPACE atomic<T>* at, typename msl::Spaced<T>::Plain x, \
                                                       memory_order, MSL_SITE) {                                  \
    msl::touch(&at->value, msl::ATOMIC_UPDATE, site);                                                             \
    return msl::update((T*)&at->value, [x](T before) { return both(before, x); });                                \
  }
#define MSL_ATOMIC(SPACE)                                                                                         \
  template <class T> inline T atomic_load_explicit(const volatile SPACE atomic<T>* at, memory_order, MSL_SITE) {  \
    msl::touch(&at->value, msl::ATOMIC_READ, site);                                                               \
    T value;                                                                                                      \
    __atomic_load((T*)&at->value, &value, __ATOMIC_RELAXED);                                                      \
    return value;                                                                                                 \
  }                                                                                                               \
  template <class T> inline void atomic_store_explicit(volatile SPACE atomic<T>* at, typename msl::Spaced<T>::Plain x, \
                                                       memory_order, MSL_SITE) {                                  \
    msl::touch(&at->value, msl::ATOMIC_WRITE, site);                                                              \
    __atomic_store((T*)&at->value, &x, __ATOMIC_RELAXED);                                                         \
  }                                                                                                               \
  template <class T> inline bool atomic_compare_exchange_weak_explicit(volatile SPACE atomic<T>* at, \
                                                                       thread T* expected, \
                                                                       typename msl::Spaced<T>::Plain x, memory_order, \
                                                                       memory_order, MSL_SITE) {                  \
    msl::touch(&at->value, msl::ATOMIC_UPDATE, site);                                                             \
    return __atomic_compare_exchange((T*)&at->value, expected, &x, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED);     \
  }                                                                                                               \
  MSL_UPDATE(SPACE, exchange, ([](T, T x) { return x; }))                                                         \
  MSL_UPDATE(SPACE, fetch_add, msl::ADD)                                                                          \
  MSL_UPDATE(SPACE, fetch_sub, ([](T a, T b) { return T(a - b); }))                                               \
  MSL_UPDATE(SPACE, fetch_max, msl::GREATER)                                                                      \
  MSL_UPDATE(SPACE, fetch_min, msl::LESSER)                                                                       \
  MSL_UPDATE(SPACE, fetch_and, msl::AND)                                                                          \
  MSL_UPDATE(SPACE, fetch_or, msl::OR)                                                                            \
  MSL_UPDATE(SPACE, fetch_xor, msl::XOR)
MSL_ATOMIC(device) MSL_ATOMIC(threadgroup)
#undef MSL_ATOMIC
#undef MSL_UPDATE

}  // namespace metal
