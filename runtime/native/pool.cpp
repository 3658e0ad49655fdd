#include "pool.h"

#include <chrono>

namespace moepack {

namespace {

// Decode runs a kernel every few microseconds: spinning this long bridges the gaps, sleeping saves the rest.
constexpr auto SPIN = std::chrono::microseconds(50);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until done() or the time is up; says which.
template <typename Done> bool spin(const Done& done) {
  const auto end = std::chrono::steady_clock::now() + SPIN;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

}  // namespace

Pool::Pool(int threads) : scratch_(static_cast<size_t>(threads)) {
  for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { serve(thread); });
}

Pool::~Pool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

float* Pool::scratch(int thread, int64_t floats) {
  std::vector<float>& own = scratch_[static_cast<size_t>(thread)];
  if (own.size() < static_cast<size_t>(floats)) own.resize(static_cast<size_t>(floats));
  return own.data();
}

void Pool::run(int64_t count, int64_t grain, const void* work, Call call) {
  const std::lock_guard one(caller_);
  work_ = work, call_ = call, count_ = count, grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  {
    const std::lock_guard lock(mutex_);
    round_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  take(0);
  const auto idle = [this] { return busy_.load(std::memory_order_acquire) == 0; };
  while (!spin(idle)) std::this_thread::yield();
}

void Pool::take(int thread) {
  for (;;) {
    const int64_t first = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (first >= count_) return;
    call_(work_, first, first + grain_ < count_ ? first + grain_ : count_, thread);
  }
}

// False when the pool is being destroyed.
bool Pool::wait_for_work(uint64_t seen) {
  const auto ready = [&] { return stop_.load() || round_.load(std::memory_order_acquire) != seen; };
  if (!spin(ready)) {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, ready);
  }
  return !stop_.load();
}

void Pool::serve(int thread) {
  for (uint64_t seen = 0; wait_for_work(seen); ++seen) {
    take(thread);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace moepack
