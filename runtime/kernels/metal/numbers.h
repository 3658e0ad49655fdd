// Functions of one number, and how many threads share one. Nothing here knows of matrices.
//
// None of these kernels has run on Apple hardware: tests run and check them on a CPU, by tests/metal/msl.
// Libraries are compiled without fast-math: infinities and what is not a number must stay what they are.

#include <metal_stdlib>
using namespace metal;

constant constexpr uint LANES = 32;       // of a SIMD group
constant constexpr uint SIMD_GROUPS = 8;  // of a threadgroup, unless a kernel says otherwise
constant constexpr uint THREADS = LANES * SIMD_GROUPS;

// Which thread of its threadgroup one is.
struct Thread {
  uint lane, group;
  uint index() const { return group * LANES + lane; }
};

inline float sigmoid(float x) { return 1.0f / (1.0f + precise::exp(-x)); }

inline float silu(float x) { return x / (1.0f + precise::exp(-x)); }

// log(1 + e) for e >= 0. Metal has no log1p; what 1 + e rounds away is put right by the second factor.
inline float log_of_1_plus(float e) {
  const float sum = 1.0f + e;
  return sum == 1.0f ? e : precise::log(sum) * (e / (sum - 1.0f));
}

inline float softplus(float x) { return x > 20.0f ? x : log_of_1_plus(precise::exp(x)); }

// What becomes of a result that is computed: it is what is stored, or is added to that.
struct Set {
  static void write(device float* to, float value) { *to = value; }
};
struct Add {
  static void write(device float* to, float value) { *to += value; }
};

// The sum of the squares of `width` numbers, in every lane of the SIMD group that reads them.
inline float sum_of_squares(device const float* x, uint width, uint lane) {
  float squares = 0.0f;
  for (uint d = lane; d < width; d += LANES) squares = fma(x[d], x[d], squares);
  return simd_sum(squares);
}

// A number that may be chosen, and whose it is.
struct Candidate {
  float value;
  uint id;
};

constant constexpr uint NOBODY = 0xffffffff;

// The largest of the lanes' candidates, the lowest id of equal ones, in every lane.
inline Candidate first_of_group(Candidate own) {
  const float value = simd_max(own.value);
  return {value, simd_min(own.value == value ? own.id : NOBODY)};
}

// The sum over all threads of a threadgroup of THREADS, SIMD group by SIMD group. `partial` has a place for each group.
inline float sum_of_all(float value, threadgroup float* partial, uint group, uint lane) {
  const float sum = simd_sum(value);
  if (lane == 0) partial[group] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float total = 0.0f;
  for (uint g = 0; g < SIMD_GROUPS; ++g) total += partial[g];
  return total;
}
