// Buffers of exactly the size that a kernel may touch, so that a byte too far is an error, filled from the fuzzer's input.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

struct Freed {
  void operator()(void* at) const { std::free(at); }
};

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count, uint8_t fill = 0xa5) : count_(count) {
    void* at = nullptr;
    if (posix_memalign(&at, 64, static_cast<size_t>(count > 0 ? count : 1) * sizeof(T))) throw std::bad_alloc();
    held_.reset(static_cast<T*>(at));
    std::memset(at, fill, static_cast<size_t>(count) * sizeof(T));
  }

  // Any bytes: a hash of the place, and of the input's own bytes as far as they go.
  void fill(FuzzedDataProvider& input) {
    const std::string own = input.ConsumeBytesAsString(input.ConsumeIntegralInRange<size_t>(0, 256));
    uint8_t* const bytes = reinterpret_cast<uint8_t*>(held_.get());
    uint64_t state = input.ConsumeIntegral<uint64_t>() | 1;
    for (int64_t i = 0; i < count_ * static_cast<int64_t>(sizeof(T)); ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      bytes[i] = i < static_cast<int64_t>(own.size()) ? static_cast<uint8_t>(own[static_cast<size_t>(i)]) : state >> 56;
    }
  }

  T* data() { return held_.get(); }

 private:
  int64_t count_;
  std::unique_ptr<T, Freed> held_;
};
