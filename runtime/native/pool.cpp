#include "pool.h"

#include <chrono>

namespace moepack {

namespace {

// Decode runs a kernel every few microseconds: spinning this long bridges the gaps, sleeping saves the rest.
constexpr auto SPIN = std::chrono::microseconds(200);
constexpr uint64_t PIECE = 0xffffffffu;  // the low half of next_; as a piece's number: none to be had

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until done() or the time is up; says which.
template <typename Done> bool spin(const Done& done) {
  for (int i = 0; i < 64; ++i) {
    if (done()) return true;
    pause();
  }
  const auto end = std::chrono::steady_clock::now() + SPIN;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

uint64_t round_of(uint64_t next) { return next >> 32; }

}  // namespace

Pool::Pool(int threads) : scratch_(static_cast<size_t>(threads)) {
  for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { serve(thread); });
}

Pool::~Pool() {
  stop_ = true;
  wake();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::reserve(size_t threads, int64_t floats) {
  const auto room = static_cast<size_t>(floats + LINE);
  for (size_t thread = 0; thread < threads; ++thread)
    if (scratch_[thread].size() < room) scratch_[thread].resize(room);
}

void Pool::share(int64_t count, int64_t grain, const void* work, Call call) {
  const uint64_t before = next_.load(), round = (round_of(before) + 1) << 32;
  const uint64_t pieces = static_cast<uint64_t>((count + grain - 1) / grain);
  next_.store(before | PIECE);  // from here on nobody can own a piece of the old work
  work_.store(work), call_.store(call), count_.store(count), grain_.store(grain), pieces_.store(pieces);
  done_.store(0);
  next_.store(round);
  if (sleepers_.load() > 0) wake();
  take(0);
  const auto finished = [&] { return done_.load(std::memory_order_acquire) == pieces; };
  while (!spin(finished)) std::this_thread::yield();
}

void Pool::take(int thread) {
  for (;;) {
    uint64_t next = next_.load();
    const Call call = call_.load();
    const void* const work = work_.load();
    const int64_t count = count_.load(), grain = grain_.load(), first = static_cast<int64_t>(next & PIECE) * grain;
    if ((next & PIECE) >= pieces_.load()) return;
    if (!next_.compare_exchange_strong(next, next + 1)) continue;
    call(work, first, first + grain < count ? first + grain : count, thread);
    done_.fetch_add(1, std::memory_order_release);
  }
}

void Pool::wake() {
  const std::lock_guard lock(mutex_);  // a thread about to sleep holds it, and would miss this
  wake_.notify_all();
}

// False when the pool is being destroyed.
bool Pool::wait_for_work(uint64_t seen) {
  const auto ready = [&] { return stop_.load() || round_of(next_.load()) != seen; };
  if (!spin(ready)) {
    std::unique_lock lock(mutex_);
    ++sleepers_;
    wake_.wait(lock, ready);
    --sleepers_;
  }
  return !stop_.load();
}

void Pool::serve(int thread) {
  for (uint64_t seen = 0; wait_for_work(seen);) {
    seen = round_of(next_.load());
    take(thread);
  }
}

}  // namespace moepack
