// The allocator kept from hoarding, memory locked, memory bandwidth measured.
#include "memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <chrono>
#include <new>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "pool.h"

namespace moepack {

namespace {

constexpr size_t HUGE_PAGE = 2 << 20;
constexpr int64_t PIECE = 1 << 20;  // bytes one thread reads before it asks for more

// glibc raises its thresholds as it sees large blocks, and then keeps what was freed: a peak would depend on history.
// With fixed ones, blocks from a megabyte up are the system's again when freed.
bool bound_heap() {
#ifdef __GLIBC__
  return mallopt(M_MMAP_THRESHOLD, 1 << 20) && mallopt(M_TRIM_THRESHOLD, 4 << 20) && mallopt(M_ARENA_MAX, 2);
#else
  return false;
#endif
}

void trim_heap() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

int lock(Array<uint8_t, 1> memory) { return mlock(memory.data(), memory.size()) == 0 ? 0 : errno; }

// Sums eight words at a time, so that the loads are what takes time.
uint64_t sum(const uint64_t* words, int64_t count) {
  uint64_t lanes[8] = {};
  for (int64_t i = 0; i + 8 <= count; i += 8)
    for (int64_t lane = 0; lane < 8; ++lane) lanes[lane] += words[i + lane];
  uint64_t all = 0;
  for (const uint64_t lane : lanes) all += lane;
  return all;
}

// Bytes per second at which all threads together read `memory` once.
double read_bandwidth(Pool& pool, Array<const uint8_t, 1> memory) {
  const int64_t size = extent(memory, 0);
  require(size >= PIECE, "read_bandwidth: the memory is too small to time");
  nb::gil_scoped_release release;
  const auto* words = reinterpret_cast<const uint64_t*>(memory.data());
  std::atomic<uint64_t> seen{0};  // keeps the compiler from leaving out the reads
  const auto start = std::chrono::steady_clock::now();
  pool.run(size / 8, PIECE / 8, [&](int64_t first, int64_t last, int) { seen += sum(words + first, last - first); });
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  return static_cast<double>(size) / took.count();
}

}  // namespace

void* memory_for(size_t bytes) {
  const bool much = bytes >= 2 * HUGE_PAGE;
  const size_t line = much ? HUGE_PAGE : LINE * sizeof(float);
  void* const memory = std::aligned_alloc(line, (bytes + line - 1) / line * line);
  if (memory == nullptr && bytes > 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (much) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

void bind_memory(nb::module_& m) {
  m.def("bound_heap", &bound_heap);
  m.def("trim_heap", &trim_heap, nb::call_guard<nb::gil_scoped_release>());
  m.def("lock", &lock, exact("memory"), nb::call_guard<nb::gil_scoped_release>());
  m.def("read_bandwidth", &read_bandwidth, nb::arg("pool"), exact("memory"));
}

}  // namespace moepack
