// What the translation has to rewrite, and what it has to leave alone.
#include <metal_stdlib>
using namespace metal;

struct Shape {
  uint rows, cols;
  float4 scale;
};

constant constexpr uint WIDTH = 4;
constant char4 BOOK[2][2] = {{{1, -2, 3, -4}, {5, 6, 7, 8}}, {{9, 10, 11, 12}, {13, 14, 15, -16}}};

kernel void literals(device float* y [[buffer(0)]]) {
  y[0] = 0.1;
  y[1] = 1e-3 + 2. + .5;
  y[2] = 1.0e2f;
  y[3] = float(0.1h);
  y[4] = 1 / 2;
  y[5] = 16777217.0;  // one more than float32 can tell
  y[6] = 0x10 + 1u;
}

kernel void vectors(device float4* y [[buffer(0)]], constant Shape& shape [[buffer(1)]]) {
  const float2 ab = float2(1.0f, 2.0f);
  y[0] = float4(ab, 3.0f, 4.0f).wzyx;
  y[1] = float4(float3(ab.x), ab.y) * half(2);
  y[2] = float4(int4(uchar4(BOOK[0][0].x, 250, 1, 2)));
  y[3] = vec<float, 4>(0.5f) + shape.scale;
  y[4].xz = float2(BOOK[1][1].w, BOOK[1][0].y);
  y[4].yw = float2(dot(ab, ab), length(float2(3.0f, 4.0f)));
  y[5] = select(float4(1.0f), float4(2.0f), float4(0.0f, 1.0f, 2.0f, 3.0f) > float4(1.5f));
  y[6] = clamp(float4(-1.0f, 0.5f, 2.0f, 0.0f), 0.0f, 1.0f);
}

// Every place that a thread can ask for, of the thread at x[0]; threads are [6, 3, 2] in groups of [4, 2, 1].
kernel void places(device uint* y [[buffer(0)]],
                   uint3 grid [[thread_position_in_grid]],
                   ushort3 in [[thread_position_in_threadgroup]],
                   uint3 group [[threadgroup_position_in_grid]],
                   uint2 threads [[threads_per_threadgroup]],
                   uint3 dispatched [[dispatch_threads_per_threadgroup]],
                   uint3 groups [[threadgroups_per_grid]],
                   uint3 all [[threads_per_grid]],
                   uint index [[thread_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]],
                   uint simd [[simdgroup_index_in_threadgroup]],
                   uint simds [[simdgroups_per_threadgroup]],
                   uint width [[threads_per_simdgroup]]) {
  const uint values[] = {grid.x, grid.y, grid.z, in.x, in.y, in.z, group.x, group.y, group.z, threads.x, threads.y,
                         dispatched.x, dispatched.y, groups.x, groups.y, groups.z, all.x, all.y, all.z, index, lane,
                         simd, simds, width};
  for (uint i = 0; i < 24; ++i) y[(grid.x + all.x * (grid.y + all.y * grid.z)) * 24 + i] = values[i];
}

template <typename T, int N> [[kernel]] void scaled(device const T* x [[buffer(0)]],
                                                    device T* y [[buffer(1)]],
                                                    uint at [[thread_position_in_grid]]) {
  threadgroup T t[N][WIDTH], last;
  if (at == 0) last = x[N * WIDTH - 1];
  t[at / WIDTH][at % WIDTH] = x[at] * T(N);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[at] = t[N - 1 - at / WIDTH][at % WIDTH] + last;
}
template [[host_name("scaled_float")]] [[kernel]] void scaled<float, 4>(device const float*, device float*, uint);
typedef decltype(scaled<half, 2>) scaled_half_type;
template [[host_name("scaled_half")]] kernel scaled_half_type scaled<half, 2>;
template [[host_name("scaled_bfloat")]] [[kernel]] decltype(scaled<bfloat, 2>) scaled<bfloat, 2>;

[[max_total_threads_per_threadgroup(64)]] kernel void small_groups(device float* y [[buffer(0)]]) { y[0] = 1.0f; }

// The bits of floats, of halves, and back.
kernel void bits(device const uint* x [[buffer(0)]], device float* y [[buffer(1)]]) {
  y[0] = as_type<float>(x[0]);
  y[1] = float(as_type<half2>(x[1]).y);
  y[2] = float(as_type<bfloat>(ushort(x[2] >> 16)));
  y[3] = float(as_type<char4>(x[3]).w);
  y[4] = float(popcount(x[4]) + 100 * clz(x[4]) + 10000 * ctz(x[4]));
  y[5] = float(half(x[5]));     // rounds to eleven bits
  y[6] = float(bfloat(float(x[5])));  // and this to eight
}

kernel void rounded_each_time(device const half* x [[buffer(0)]], device half* y [[buffer(1)]]) {
  y[0] = x[0] * x[1] + x[2];
}

kernel void maths(device const float* x [[buffer(0)]],
                  device float* y [[buffer(1)]],
                  uint at [[thread_position_in_grid]]) {
  const float v = x[at];
  device float* row = y + at * 12;
  row[0] = exp(v);
  row[1] = precise::log(fabs(v) + 1.0f);
  row[2] = rsqrt(v * v + 1.0f);
  row[3] = fast::tanh(v);
  row[4] = sin(v);
  row[5] = pow(fabs(v), 1.5f);
  row[6] = floor(v) + fract(v);
  row[7] = rint(v);
  row[8] = max(v, NAN);
  row[9] = min(NAN, v);
  row[10] = sign(v);
  row[11] = fma(v, v, -v);
}

// Turns are taken in the order of the launch: each thread notes who it is.
kernel void turns(device atomic_uint* next [[buffer(0)]],
                  device uint* who [[buffer(1)]],
                  uint at [[thread_position_in_grid]]) {
  who[atomic_fetch_add_explicit(next, 1u, memory_order_relaxed)] = at;
}

// Everything that threads can add up without losing any, whoever does it at the same time.
kernel void atomics(device atomic_uint* counts [[buffer(0)]],
                    device atomic_float* sum [[buffer(1)]],
                    device atomic_int* low [[buffer(2)]],
                    uint at [[thread_position_in_grid]],
                    uint i [[thread_index_in_threadgroup]]) {
  threadgroup atomic_uint local;
  if (i == 0) atomic_store_explicit(&local, 0u, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&local, at, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint all = atomic_load_explicit(&local, memory_order_relaxed);
  if (i == 0) atomic_fetch_add_explicit(&counts[0], all, memory_order_relaxed);
  atomic_fetch_max_explicit(&counts[1], at, memory_order_relaxed);
  atomic_fetch_or_explicit(&counts[2], 1u << (at % 32), memory_order_relaxed);
  uint seen = atomic_load_explicit(&counts[3], memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit(&counts[3], &seen, seen + 2u, memory_order_relaxed,
                                                memory_order_relaxed)) {}
  atomic_fetch_add_explicit(sum, 0.5f, memory_order_relaxed);
  atomic_fetch_min_explicit(low, -int(at), memory_order_relaxed);
}

// What is in threadgroup memory before anybody writes it.
kernel void leftovers(device uint* y [[buffer(0)]],
                      threadgroup uint* t [[threadgroup(0)]],
                      uint i [[thread_index_in_threadgroup]]) {
  threadgroup uint own[64];
  y[2 * i] = t[i];
  y[2 * i + 1] = own[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  t[i] = own[i] = 7;
}

kernel void deep(device float* y [[buffer(0)]], uint at [[thread_position_in_grid]]) {
  float large[WORDS];
  for (uint i = 0; i < WORDS; ++i) large[(i * 7 + at) % WORDS] = y[i % 4];
  float sum = 0.0f;
  for (uint i = 0; i < WORDS; ++i) sum += large[(i + uint(y[3])) % WORDS];
  y[at] = sum;
}
