// Functions of a SIMD group. All its threads that have not returned must reach the same call; sums are trees of fixed
// shape, which Metal does not promise, so kernels may not depend on it.
#pragma once

namespace msl {

// What the lanes gave to one call.
template <class T> struct Given {
  const unsigned char* slots;
  unsigned active, lane;
  bool has(unsigned i) const { return i < SIMD_WIDTH && (active >> i & 1); }
  T operator[](unsigned i) const {
    T value;
    __builtin_memcpy(&value, slots + SLOT_BYTES * i, sizeof(T));
    return value;
  }
};

template <class T> inline Given<T> give(T value, Site site) {
  static_assert(sizeof(T) <= SLOT_BYTES, "SIMD-group functions take values of up to 16 bytes");
  Given<T> given;
  given.slots = msl_exchange(&value, sizeof(T), site, &given.active, &given.lane);
  return given;
}

template <class T, class F> inline T fold(T value, T neutral, F both, Site site) {
  const Given<T> given = give(value, site);
  T values[SIMD_WIDTH];
  for (unsigned i = 0; i < SIMD_WIDTH; ++i) values[i] = given.has(i) ? given[i] : neutral;
  for (unsigned half_of = SIMD_WIDTH / 2; half_of; half_of /= 2)
    for (unsigned i = 0; i < half_of; ++i) values[i] = both(values[i], values[i + half_of]);
  return values[0];
}

// The values of the active lanes before `end`, in order.
template <class T, class F> inline T fold_before(const Given<T>& given, unsigned end, T neutral, F both) {
  T result = neutral;
  for (unsigned i = 0; i < end; ++i)
    if (given.has(i)) result = both(result, given[i]);
  return result;
}

template <class T> inline T from(const Given<T>& given, unsigned lane, Site site) {
  if (!given.has(lane)) msl_diverged("this reads from a lane that has returned, or never was", site);
  return given[lane];
}

constexpr auto ADD = [](auto a, auto b) { return decltype(a)(a + b); };
constexpr auto MULTIPLY = [](auto a, auto b) { return decltype(a)(a * b); };
constexpr auto GREATER = [](auto a, auto b) { return metal::max(a, b); };
constexpr auto LESSER = [](auto a, auto b) { return metal::min(a, b); };
constexpr auto AND = [](auto a, auto b) { return decltype(a)(a & b); };
constexpr auto OR = [](auto a, auto b) { return decltype(a)(a | b); };
constexpr auto XOR = [](auto a, auto b) { return decltype(a)(a ^ b); };

template <class T> constexpr T least() {
  typedef typename Vector<T>::Element E;
  if constexpr (metal::is_floating_point_v<E>) return T(-metal::numeric_limits<E>::infinity());
  else return T(metal::numeric_limits<E>::min());
}
template <class T> constexpr T most() {
  typedef typename Vector<T>::Element E;
  if constexpr (metal::is_floating_point_v<E>) return T(metal::numeric_limits<E>::infinity());
  else return T(metal::numeric_limits<E>::max());
}

}  // namespace msl

namespace metal {

template <class T> inline T simd_sum(T x, MSL_SITE) { return msl::fold(x, T(0), msl::ADD, site); }
template <class T> inline T simd_product(T x, MSL_SITE) { return msl::fold(x, T(1), msl::MULTIPLY, site); }
template <class T> inline T simd_max(T x, MSL_SITE) { return msl::fold(x, msl::least<T>(), msl::GREATER, site); }
template <class T> inline T simd_min(T x, MSL_SITE) { return msl::fold(x, msl::most<T>(), msl::LESSER, site); }
template <class T> inline T simd_and(T x, MSL_SITE) { return msl::fold(x, T(~T(0)), msl::AND, site); }
template <class T> inline T simd_or(T x, MSL_SITE) { return msl::fold(x, T(0), msl::OR, site); }
template <class T> inline T simd_xor(T x, MSL_SITE) { return msl::fold(x, T(0), msl::XOR, site); }
inline bool simd_any(bool x, MSL_SITE) { return msl::fold(uint(x), 0u, msl::OR, site) != 0; }
inline bool simd_all(bool x, MSL_SITE) { return msl::fold(uint(x), 1u, msl::AND, site) != 0; }

struct simd_vote {
  typedef ulong vote_t;
  vote_t votes, active;
  explicit simd_vote(vote_t votes, vote_t active) : votes(votes), active(active) {}
  explicit operator vote_t() const { return votes; }
  bool any() const { return votes != 0; }
  bool all() const { return votes == active; }
};
inline simd_vote simd_ballot(bool x, MSL_SITE) {
  const msl::Given<uint> given = msl::give(uint(x), site);
  ulong votes = 0;
  for (uint i = 0; i < msl::SIMD_WIDTH; ++i)
    if (given.has(i) && given[i]) votes |= 1ul << i;
  return simd_vote(votes, given.active);
}
inline simd_vote simd_active_threads_mask(MSL_SITE) { return simd_ballot(true, site); }
inline bool simd_is_first(MSL_SITE) {
  const msl::Given<uint> given = msl::give(0u, site);
  return given.lane == uint(__builtin_ctz(given.active));
}

template <class T> inline T simd_shuffle(T x, ushort lane, MSL_SITE) {
  return msl::from(msl::give(x, site), lane, site);
}
template <class T> inline T simd_broadcast(T x, ushort lane, MSL_SITE) {
  return msl::from(msl::give(x, site), lane, site);
}
template <class T> inline T simd_broadcast_first(T x, MSL_SITE) {
  const msl::Given<T> given = msl::give(x, site);
  return given[uint(__builtin_ctz(given.active))];
}
template <class T> inline T simd_shuffle_xor(T x, ushort mask, MSL_SITE) {
  const msl::Given<T> given = msl::give(x, site);
  return msl::from(given, given.lane ^ mask, site);
}
// Lanes for which there is no other keep what they have.
template <class T> inline T simd_shuffle_down(T x, ushort by, MSL_SITE) {
  const msl::Given<T> given = msl::give(x, site);
  return given.lane + by < msl::SIMD_WIDTH ? msl::from(given, given.lane + by, site) : x;
}
template <class T> inline T simd_shuffle_up(T x, ushort by, MSL_SITE) {
  const msl::Given<T> given = msl::give(x, site);
  return given.lane >= by ? msl::from(given, given.lane - by, site) : x;
}
template <class T> inline T simd_shuffle_and_fill_down(T x, T fill, ushort by, MSL_SITE) {
  const msl::Given<T> given = msl::give(x, site), filling = msl::give(fill, site);
  const uint lane = given.lane + by;
  return lane < msl::SIMD_WIDTH ? msl::from(given, lane, site) : msl::from(filling, lane - msl::SIMD_WIDTH, site);
}
template <class T> inline T simd_shuffle_and_fill_up(T x, T fill, ushort by, MSL_SITE) {
  const msl::Given<T> given = msl::give(x, site), filling = msl::give(fill, site);
  return given.lane >= by ? msl::from(given, given.lane - by, site)
                          : msl::from(filling, given.lane + msl::SIMD_WIDTH - by, site);
}
template <class T> inline T simd_shuffle_rotate_down(T x, ushort by, MSL_SITE) {
  const msl::Given<T> given = msl::give(x, site);
  return msl::from(given, (given.lane + by) % msl::SIMD_WIDTH, site);
}
template <class T> inline T simd_shuffle_rotate_up(T x, ushort by, MSL_SITE) {
  const msl::Given<T> given = msl::give(x, site);
  return msl::from(given, (given.lane - by) % msl::SIMD_WIDTH, site);
}

template <class T> inline T simd_prefix_inclusive_sum(T x, MSL_SITE) {
  const msl::Given<T> given = msl::give(x, site);
  return msl::fold_before(given, given.lane + 1, T(0), msl::ADD);
}
template <class T> inline T simd_prefix_exclusive_sum(T x, MSL_SITE) {
  const msl::Given<T> given = msl::give(x, site);
  return msl::fold_before(given, given.lane, T(0), msl::ADD);
}
template <class T> inline T simd_prefix_inclusive_product(T x, MSL_SITE) {
  const msl::Given<T> given = msl::give(x, site);
  return msl::fold_before(given, given.lane + 1, T(1), msl::MULTIPLY);
}
template <class T> inline T simd_prefix_exclusive_product(T x, MSL_SITE) {
  const msl::Given<T> given = msl::give(x, site);
  return msl::fold_before(given, given.lane, T(1), msl::MULTIPLY);
}

// Quads: four neighbouring lanes.
template <class T> inline T quad_sum(T x, MSL_SITE) {
  const msl::Given<T> given = msl::give(x, site);
  const uint first = given.lane / 4 * 4;
  T sum = T(0);
  for (uint i = first; i < first + 4; ++i)
    if (given.has(i)) sum += given[i];
  return sum;
}
template <class T> inline T quad_shuffle_xor(T x, ushort mask, MSL_SITE) {
  const msl::Given<T> given = msl::give(x, site);
  return msl::from(given, given.lane ^ (mask & 3u), site);
}
template <class T> inline T quad_broadcast(T x, ushort lane, MSL_SITE) {
  const msl::Given<T> given = msl::give(x, site);
  return msl::from(given, given.lane / 4 * 4 + lane % 4, site);
}

}  // namespace metal
