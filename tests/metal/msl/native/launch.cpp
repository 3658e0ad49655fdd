// Divides a launch's threadgroups among OS threads: worker w of n takes every n-th of them, in the launch's order, so
// that what a worker does depends on the launch alone. Workers live as long as the process.
#include <algorithm>
#include <condition_variable>
#include <numeric>
#include <thread>

#include "checker.h"

namespace msl {
namespace {

std::vector<unsigned long> ordered(const Launch& launch) {
  unsigned long count = 1;
  for (unsigned groups : launch.threadgroups) count *= groups;
  std::vector<unsigned long> order(count);
  std::iota(order.begin(), order.end(), 0ul);
  if (launch.order == REVERSE) std::reverse(order.begin(), order.end());
  if (launch.order < 0) return order;
  std::minstd_rand random(static_cast<unsigned>(launch.order + 1));
  for (unsigned long i = count; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  return order;
}

// What the workers of one launch share.
struct Work {
  const Launch& launch;
  Faults& faults;
  Checker* checker;
  const std::vector<unsigned long>& order;
  unsigned workers;
};

void take_share(const Work& work, unsigned worker) {
  thread_local Threadgroup threadgroup;
  threadgroup.begin(work.launch, work.faults, work.checker);
  for (unsigned long i = worker; i < work.order.size() && !work.faults.stopped(); i += work.workers)
    threadgroup.run(work.order[i]);
}

// Threads beside the caller's, which is worker 0.
class Pool {
 public:
  void run(const Work& work) {
    while (threads_.size() + 1 < work.workers) add();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      work_ = &work;
      workers_ = work.workers;
      left_ = workers_ - 1;
      ++turn_;
    }
    begins_.notify_all();
    take_share(work, 0);
    std::unique_lock<std::mutex> lock(mutex_);
    ended_.wait(lock, [&] { return left_ == 0; });
  }

 private:
  void add() {
    const unsigned worker = static_cast<unsigned>(threads_.size()) + 1;
    threads_.emplace_back([this, worker, turn = turn_] { serve(worker, turn); });
    threads_.back().detach();
  }

  void serve(unsigned worker, unsigned long seen) {
    for (;;) {
      const Work* work;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        begins_.wait(lock, [&] { return turn_ != seen; });
        seen = turn_;
        if (worker >= workers_) continue;
        work = work_;
      }
      take_share(*work, worker);
      std::lock_guard<std::mutex> lock(mutex_);
      if (--left_ == 0) ended_.notify_all();
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable begins_, ended_;
  const Work* work_ = nullptr;
  unsigned workers_ = 0, left_ = 0;
  unsigned long turn_ = 0;
};

}  // namespace

extern "C" void msl_launch(Launch* launch) {
  static std::mutex one_at_a_time;
  static Pool& pool = *new Pool;  // never destroyed: its threads outlive main
  std::lock_guard<std::mutex> lock(one_at_a_time);
  Faults faults(*launch);
  const std::vector<unsigned long> order = ordered(*launch);
  const unsigned long useful = launch->checked ? 1 : std::min<unsigned long>(launch->workers, order.size());
  Checker checker(*launch);
  pool.run({*launch, faults, launch->checked ? &checker : nullptr, order, static_cast<unsigned>(useful)});
}

}  // namespace msl
