// How a kernel is called, and what is told about its arguments: the code that the translation adds is made of these.
#pragma once

namespace msl {

template <int I, class First, class... Rest> struct Nth {
  typedef typename Nth<I - 1, Rest...>::Type Type;
};
template <class First, class... Rest> struct Nth<0, First, Rest...> {
  typedef First Type;
};
template <class F> struct Parameters;
template <class... A> struct Parameters<void(A...)> {
  template <int I> using At = typename Nth<I, A...>::Type;
};

template <class T> struct Pointee {
  static constexpr bool is = false;
  typedef T Type;
};
template <class T> struct Pointee<T*> {
  static constexpr bool is = true;
  typedef T Type;
  static T* at(void* address) { return (T*)address; }
};
template <class T> struct Pointee<T&> {
  static constexpr bool is = true;
  typedef T Type;
  static T& at(void* address) { return *(T*)address; }
};

// Facts about a [[buffer(n)]] or [[threadgroup(n)]] parameter.
template <class P> struct Memory_argument {
  typedef typename Pointee<P>::Type Target;
  typedef typename Spaced<Target>::Plain Plain;
  static constexpr unsigned space = Spaced<Target>::space;
  static constexpr bool writable = !__is_const(Target);
  static constexpr bool is_buffer = Pointee<P>::is && (space == DEVICE || space == CONSTANT);
  static constexpr bool is_threadgroup = Pointee<P>::is && space == THREADGROUP;
};

template <class T> inline T value(const unsigned (&place)[3]) {
  if constexpr (Vector<T>::width == 1) return T(place[0]);
  else {
    T result{};
    for (int i = 0; i < Vector<T>::width; ++i) result[i] = typename Vector<T>::Element(place[i]);
    return result;
  }
}
template <class T> inline T value(unsigned number) { return T(number); }

}  // namespace msl
