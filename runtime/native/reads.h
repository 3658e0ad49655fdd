// Threads that read byte ranges of files into memory the caller owns.
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace moepack {

// One record of a range, and how its read ended: `got` bytes arrived from its start on; `error` is errno, or 0 (then
// got < size means that the file ended early).
struct Arrival {
  uint64_t ticket;
  int64_t got;
  int error;
};

// A contiguous range of a file into several places, and how it is to be read.
struct Range {
  uint64_t ticket;  // of the first place; the others have the numbers after it
  int fd;
  int64_t offset;
  std::vector<iovec> places;
  int pieces;   // parts of nearly equal size that threads read side by side
  bool urgent;  // others wait until no urgent range is queued or being read
  bool forget;  // ask the system to drop the range's pages from its cache once it is read
};

class ReadPool {
 public:
  explicit ReadPool(int threads);
  ~ReadPool();
  ReadPool(const ReadPool&) = delete;
  ReadPool& operator=(const ReadPool&) = delete;

  // Starts a range. Its places must stay valid until their tickets have arrived or were given up.
  void submit(Range range);
  // Makes the range of a ticket urgent, if it is not being read yet.
  void hurry(uint64_t ticket);
  // Gives up the range of a ticket, unless it is being read already: false then.
  bool cancel(uint64_t ticket);
  // Waits for the next record that is read, whichever it is; nothing after `close`.
  std::optional<Arrival> next();
  // Gives up what is queued, waits for what is being read, and forgets what has arrived but was not handed out.
  void abandon();
  // Gives up everything and ends the threads.
  void close();
  // How long at least one read has been under way, in seconds.
  double busy_seconds();

 private:
  using Clock = std::chrono::steady_clock;
  struct Job;
  struct Piece;
  using Queue = std::deque<Piece>;

  void serve();
  Queue* ready();
  void finish(Piece& piece, int64_t got, int error);
  void begin_read(bool urgent);
  void end_read(bool urgent);

  std::mutex mutex_;
  std::condition_variable work_, arrival_, quiet_;
  Queue urgent_, patient_;
  std::deque<Arrival> arrived_;
  int reading_[2] = {0, 0};  // threads in a read: of patient ranges, of urgent ones
  Clock::time_point busy_since_{};
  Clock::duration busy_{};
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace moepack
