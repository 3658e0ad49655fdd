#include "reads.h"

#include <unistd.h>

#include <cerrno>
#include <stdexcept>

namespace moepack {

namespace {

constexpr int64_t MOST_PER_CALL = int64_t{1} << 30;  // macOS refuses reads of 2 GiB and more

ReadResult read_fully(int fd, int64_t offset, int64_t size, uint8_t* to) {
  int64_t got = 0;
  while (got < size) {
    const int64_t ask = size - got < MOST_PER_CALL ? size - got : MOST_PER_CALL;
    const ssize_t n = pread(fd, to + got, static_cast<size_t>(ask), static_cast<off_t>(offset + got));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return {got, errno};
    if (n == 0) return {got, 0};
    got += n;
  }
  return {got, 0};
}

}  // namespace

ReadPool::ReadPool(int threads) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { serve(); });
}

ReadPool::~ReadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    queue_.clear();
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

uint64_t ReadPool::submit(int fd, int64_t offset, int64_t size, uint8_t* to) {
  const std::lock_guard lock(mutex_);
  queue_.push_back({++last_, fd, offset, size, to});
  work_.notify_one();
  return last_;
}

ReadResult ReadPool::wait(uint64_t ticket) {
  std::unique_lock lock(mutex_);
  if (ticket == 0 || ticket > last_) throw std::out_of_range("no such read");
  done_.wait(lock, [&] { return results_.count(ticket) != 0; });
  const ReadResult result = results_.at(ticket);
  results_.erase(ticket);
  return result;
}

void ReadPool::drain() {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return queue_.empty() && under_way_ == 0; });
}

void ReadPool::serve() {
  std::unique_lock lock(mutex_);
  for (;;) {
    work_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (stop_) return;
    const Read read = queue_.front();
    queue_.pop_front();
    ++under_way_;
    lock.unlock();
    const ReadResult result = read_fully(read.fd, read.offset, read.size, read.to);
    lock.lock();
    --under_way_;
    results_.emplace(read.ticket, result);
    done_.notify_all();
  }
}

}  // namespace moepack
