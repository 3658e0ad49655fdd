// Threads that read byte ranges of files into memory the caller owns.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

namespace moepack {

// How a read ended: `got` bytes arrived; `error` is errno, or 0 (then got < size means the file ended early).
struct ReadResult {
  int64_t got;
  int error;
};

class ReadPool {
 public:
  explicit ReadPool(int threads);
  ~ReadPool();
  ReadPool(const ReadPool&) = delete;
  ReadPool& operator=(const ReadPool&) = delete;

  // Starts reading `size` bytes at `offset` of `fd` to `to`, which must stay valid until wait(ticket) returns.
  uint64_t submit(int fd, int64_t offset, int64_t size, uint8_t* to);
  // Waits for a read; each ticket is waited for exactly once. Throws std::out_of_range for an unknown ticket.
  ReadResult wait(uint64_t ticket);
  // Waits until no read is queued or under way.
  void drain();

 private:
  struct Read {
    uint64_t ticket;
    int fd;
    int64_t offset, size;
    uint8_t* to;
  };

  void serve();

  std::mutex mutex_;
  std::condition_variable work_, done_;
  std::deque<Read> queue_;
  std::unordered_map<uint64_t, ReadResult> results_;
  uint64_t last_ = 0;
  int under_way_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace moepack
