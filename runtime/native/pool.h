// A persistent pool of threads that shares out a range of independent pieces of work.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace moepack {

constexpr int64_t LINE = 16;  // floats of a cache line

// The first cache line of a room that was asked for with LINE floats more.
inline float* aligned(float* room) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(room), line = LINE * sizeof(float);
  return reinterpret_cast<float*>((address + line - 1) / line * line);
}

class Pool {
 public:
  // `threads` includes the caller, so threads - 1 are started.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(first, last, thread) until 0..count is done, in pieces of `grain`; returns when all is done.
  // Waits for pieces, not for threads: on a busy machine the caller does what nobody else gets to. One caller at a
  // time; a second one waits. Each thread finds room for `floats` floats at scratch(thread): made before any work
  // starts, because running out of memory is an exception only where the caller is. Work itself must not throw.
  template <typename Work> void run(int64_t count, int64_t grain, const Work& work, int64_t floats = 0) {
    const std::lock_guard one(caller_);
    if (count <= grain || workers_.empty()) {
      reserve(1, floats);
      if (count > 0) work(int64_t{0}, count, 0);
      return;
    }
    reserve(scratch_.size(), floats);
    share(count, grain, &work, [](const void* w, int64_t first, int64_t last, int thread) {
      (*static_cast<const Work*>(w))(first, last, thread);
    });
  }

  // The calling thread's own room, from a cache line on. Call only inside work.
  float* scratch(int thread) { return aligned(scratch_[static_cast<size_t>(thread)].data()); }

 private:
  using Call = void (*)(const void*, int64_t, int64_t, int);

  void reserve(size_t threads, int64_t floats);
  void share(int64_t count, int64_t grain, const void* work, Call call);
  void serve(int thread);
  void take(int thread);
  bool wait_for_work(uint64_t seen);
  void wake();

  // The round in the high half, the next piece in the low half. A thread owns a piece by moving this on from exactly
  // the value it saw, which fails if the round's work has been replaced meanwhile.
  std::atomic<uint64_t> next_{0};
  std::atomic<uint64_t> pieces_{0}, done_{0};
  std::atomic<int64_t> count_{0}, grain_{1};
  std::atomic<const void*> work_{nullptr};
  std::atomic<Call> call_{nullptr};

  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex caller_, mutex_;
  std::condition_variable wake_;
  std::vector<std::vector<float>> scratch_;
  std::vector<std::thread> workers_;
};

}  // namespace moepack
