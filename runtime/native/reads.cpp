#include "reads.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace moepack {

namespace {

constexpr int64_t PIECE_ALIGNMENT = 16 * 1024;  // what direct reads and every system's pages can bear
constexpr size_t MOST_PLACES = 64;              // of one system call; every system allows more

int64_t size_of(const std::vector<iovec>& places) {
  int64_t size = 0;
  for (const iovec& place : places) size += static_cast<int64_t>(place.iov_len);
  return size;
}

// The bytes from `first` to `last` of places laid end to end.
std::vector<iovec> cut(const std::vector<iovec>& places, int64_t first, int64_t last) {
  std::vector<iovec> part;
  int64_t start = 0;
  for (const iovec& place : places) {
    const int64_t end = start + static_cast<int64_t>(place.iov_len);
    const int64_t from = std::max(start, first), to = std::min(end, last);
    if (from < to)
      part.push_back({static_cast<uint8_t*>(place.iov_base) + (from - start), static_cast<size_t>(to - from)});
    start = end;
  }
  return part;
}

// Fills places of `size` bytes in all; the count of bytes that arrived, and errno or 0.
std::pair<int64_t, int> read_fully(int fd, int64_t offset, int64_t size, const std::vector<iovec>& places) {
  int64_t got = 0;
  while (got < size) {
    const std::vector<iovec> rest = cut(places, got, size);
    const int count = static_cast<int>(std::min(rest.size(), MOST_PLACES));
    const ssize_t n = preadv(fd, rest.data(), count, static_cast<off_t>(offset + got));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return {got, errno};
    if (n == 0) return {got, 0};
    got += n;
  }
  return {got, 0};
}

void forget_pages(int fd, int64_t offset, int64_t size) {
#ifdef POSIX_FADV_DONTNEED
  posix_fadvise(fd, static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_DONTNEED);
#else
  (void)fd, (void)offset, (void)size;
#endif
}

}  // namespace

// A range under way: what its pieces brought so far.
struct ReadPool::Job {
  struct End {
    int64_t first, size, got;
    int error;
  };

  Range range;
  std::vector<End> ends;  // of the pieces, in the order of the file
  size_t left;            // pieces that have not ended

  bool has(uint64_t ticket) const { return ticket - range.ticket < range.places.size(); }
};

struct ReadPool::Piece {
  std::shared_ptr<Job> job;
  size_t index;
};

ReadPool::ReadPool(int threads) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { serve(); });
}

ReadPool::~ReadPool() { close(); }

void ReadPool::close() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    urgent_.clear();
    patient_.clear();
    arrived_.clear();
  }
  work_.notify_all();
  arrival_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void ReadPool::submit(Range range) {
  const int64_t size = size_of(range.places);
  const int64_t units = (size / range.pieces + PIECE_ALIGNMENT - 1) / PIECE_ALIGNMENT;
  const int64_t part = std::max<int64_t>(1, units) * PIECE_ALIGNMENT;
  auto job = std::make_shared<Job>(Job{std::move(range), {}, 0});
  for (int64_t first = 0; first < size; first += part) job->ends.push_back({first, std::min(part, size - first), 0, 0});
  job->left = job->ends.size();
  const std::lock_guard lock(mutex_);
  Queue& queue = job->range.urgent ? urgent_ : patient_;
  for (size_t index = 0; index < job->ends.size(); ++index) {
    queue.push_back({job, index});
    work_.notify_one();
  }
}

void ReadPool::hurry(uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  for (auto piece = patient_.begin(); piece != patient_.end();) {
    if (!piece->job->has(ticket)) {
      ++piece;
      continue;
    }
    urgent_.push_back(*piece);
    piece = patient_.erase(piece);
    work_.notify_one();
  }
}

bool ReadPool::cancel(uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  for (Queue* queue : {&patient_, &urgent_}) {
    const auto mine = [&](const Piece& piece) { return piece.job->has(ticket); };
    const auto found = std::find_if(queue->begin(), queue->end(), mine);
    if (found == queue->end()) continue;
    const size_t queued = static_cast<size_t>(std::count_if(queue->begin(), queue->end(), mine));
    if (queued < found->job->ends.size()) return false;
    queue->erase(std::remove_if(queue->begin(), queue->end(), mine), queue->end());
    return true;
  }
  return false;
}

std::optional<Arrival> ReadPool::next() {
  std::unique_lock lock(mutex_);
  arrival_.wait(lock, [this] { return stop_ || !arrived_.empty(); });
  if (stop_) return std::nullopt;
  const Arrival arrival = arrived_.front();
  arrived_.pop_front();
  return arrival;
}

void ReadPool::abandon() {
  std::unique_lock lock(mutex_);
  urgent_.clear();
  patient_.clear();
  quiet_.wait(lock, [this] { return reading_[0] + reading_[1] == 0; });
  arrived_.clear();
}

double ReadPool::busy_seconds() {
  const std::lock_guard lock(mutex_);
  const bool busy = reading_[0] + reading_[1] > 0;
  return std::chrono::duration<double>(busy ? busy_ + (Clock::now() - busy_since_) : busy_).count();
}

// The queue whose turn it is. Patient reads may take all threads: with fewer, disks that need several reads at once would
// give guesses half of their speed, and an urgent one that comes waits for one read at most.
ReadPool::Queue* ReadPool::ready() {
  if (!urgent_.empty()) return &urgent_;
  return !patient_.empty() && reading_[1] == 0 ? &patient_ : nullptr;
}

void ReadPool::serve() {
  std::unique_lock lock(mutex_);
  for (;;) {
    Queue* queue = nullptr;
    work_.wait(lock, [&] { return stop_ || (queue = ready()) != nullptr; });
    if (stop_) return;
    Piece piece = std::move(queue->front());
    const bool urgent = queue == &urgent_;
    queue->pop_front();
    const Job::End end = piece.job->ends[piece.index];
    const Range& range = piece.job->range;
    begin_read(urgent);
    lock.unlock();
    const auto [got, error] =
        read_fully(range.fd, range.offset + end.first, end.size, cut(range.places, end.first, end.first + end.size));
    if (range.forget) forget_pages(range.fd, range.offset + end.first, end.size);
    lock.lock();
    finish(piece, got, error);
    end_read(urgent);
  }
}

void ReadPool::begin_read(bool urgent) {
  if (reading_[0] + reading_[1] == 0) busy_since_ = Clock::now();
  ++reading_[urgent];
}

void ReadPool::end_read(bool urgent) {
  --reading_[urgent];
  if (reading_[0] + reading_[1] == 0) {
    busy_ += Clock::now() - busy_since_;
    quiet_.notify_all();
  }
  if (!patient_.empty()) work_.notify_all();  // patient reads may have waited for this one to end
}

// A record has what arrived without a gap from the range's start on; what is behind a gap counts as missing.
void ReadPool::finish(Piece& piece, int64_t got, int error) {
  Job& job = *piece.job;
  job.ends[piece.index].got = got;
  job.ends[piece.index].error = error;
  if (--job.left > 0) return;
  int64_t whole = 0;
  int reason = 0;
  for (const Job::End& end : job.ends) {
    whole += end.got;
    reason = end.error;
    if (end.got < end.size) break;
  }
  uint64_t ticket = job.range.ticket;
  for (const iovec& place : job.range.places) {
    const int64_t size = static_cast<int64_t>(place.iov_len), here = std::clamp<int64_t>(whole, 0, size);
    arrived_.push_back({ticket++, here, here < size ? reason : 0});
    arrival_.notify_one();
    whole -= size;
  }
}

}  // namespace moepack
