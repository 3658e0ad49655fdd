#include "threadgroup.h"

#include <algorithm>
#include <cstdlib>

namespace msl {
namespace {

constexpr unsigned MAX_THREADS = MSL_MAX_THREADS, QUAD_WIDTH = 4;
constexpr unsigned char POISON = 0xff;  // threadgroup memory begins as NaN

thread_local Threadgroup* running = nullptr;

constexpr size_t aligned(size_t size) { return (size + 15) / 16 * 16; }

}  // namespace

void Arena::clear() {
  parts.clear();
  variables.clear();
  used = 0;
}

char* Arena::take(size_t size) {
  char* address = memory.get() + used;
  used += aligned(size);
  if (used > BYTES) return nullptr;
  memset(address, POISON, aligned(size));
  parts.push_back({address, size});
  return address;
}

void Epochs::pass(unsigned flags) {
  if (flags & ORDERS_DEVICE) ++device;
  if (flags & ORDERS_THREADGROUP) ++threadgroup;
}

Threadgroup::Threadgroup()
    : stacks_(MAX_THREADS), fibers_(MAX_THREADS), slots_(new Slots[MAX_THREADS / SIMD_WIDTH]) {}

Threadgroup::~Threadgroup() = default;

void Threadgroup::begin(const Launch& launch, Faults& faults, Checker* checker) {
  launch_ = &launch;
  faults_ = &faults;
  checker_ = checker;
  for (unsigned i = 0; i < MAX_INDEX; ++i) buffers_[i] = launch.bindings[i].address;
}

void Threadgroup::run(unsigned long group) {
  running = this;
  place(group);
  if (!place_memory()) return faults_->stop();
  place_threads();
  for (;;) {
    unsigned waiting = 0;
    arrange(simdgroup_order_, simdgroups_);
    for (unsigned simdgroup : simdgroup_order_) {
      waiting += run_simdgroup(simdgroup);
      if (faults_->stopped()) return;
    }
    if (waiting == 0) return;
    if (!meet_at_barrier()) return faults_->stop();
  }
}

void Threadgroup::place(unsigned long group) {
  number_ = group;
  random_.seed(static_cast<unsigned>(launch_->order * 2654435761u + group + 1));
  unsigned long rest = group;
  for (unsigned d = 0; d < 3; ++d) {
    const unsigned groups = launch_->threadgroups[d], width = launch_->threads_per_threadgroup[d];
    const unsigned at = static_cast<unsigned>(rest % groups), threads = launch_->threads[d];
    rest /= groups;
    group_.threadgroup_position_in_grid[d] = at;
    group_.threadgroups_per_grid[d] = groups;
    group_.threads_per_grid[d] = threads;
    group_.dispatch_threads_per_threadgroup[d] = width;
    group_.threads_per_threadgroup[d] = std::min(width, threads - at * width);
  }
  const unsigned* size = group_.threads_per_threadgroup;
  threads_ = size[0] * size[1] * size[2];
  simdgroups_ = (threads_ + SIMD_WIDTH - 1) / SIMD_WIDTH;
  group_.simdgroups_per_threadgroup = simdgroups_;
  group_.threads_per_simdgroup = SIMD_WIDTH;
  group_.buffers = buffers_;
  group_.threadgroup_memory = memory_;
  epochs_ = {};
  simd_epochs_.assign(simdgroups_, {});
}

bool Threadgroup::place_memory() {
  arena_.clear();
  for (unsigned i = 0; i < MAX_INDEX; ++i) {
    const unsigned length = launch_->threadgroup_lengths[i];
    memory_[i] = length ? arena_.take(length) : nullptr;
  }
  if (arena_.used <= launch_->threadgroup_limit) return true;
  faults_->add(THREADGROUP_LIMIT, {"", 0, 0},
               std::to_string(arena_.used) + " bytes of threadgroup memory are asked for, and the limit is " +
                   std::to_string(launch_->threadgroup_limit));
  return false;
}

void Threadgroup::place_threads() {
  const unsigned* size = group_.threads_per_threadgroup;
  unsigned i = 0;
  for (unsigned z = 0; z < size[2]; ++z)
    for (unsigned y = 0; y < size[1]; ++y)
      for (unsigned x = 0; x < size[0]; ++x) place_thread(i++, x, y, z);
}

void Threadgroup::place_thread(unsigned i, unsigned x, unsigned y, unsigned z) {
  Fiber& fiber = fibers_[i];
  fiber.state = State::ready;
  fiber.parity = 0;
  fiber.lane.group = &group_;
  const unsigned place[3] = {x, y, z};
  for (unsigned d = 0; d < 3; ++d) {
    fiber.lane.thread_position_in_threadgroup[d] = place[d];
    fiber.lane.thread_position_in_grid[d] =
        group_.threadgroup_position_in_grid[d] * launch_->threads_per_threadgroup[d] + place[d];
  }
  fiber.lane.thread_index_in_threadgroup = i;
  fiber.lane.thread_index_in_simdgroup = i % SIMD_WIDTH;
  fiber.lane.simdgroup_index_in_threadgroup = i / SIMD_WIDTH;
  fiber.lane.thread_index_in_quadgroup = i % QUAD_WIDTH;
  fiber.lane.quadgroup_index_in_threadgroup = i / QUAD_WIDTH;
  stacks_.mark(i);
  prepare_context(fiber.context, stacks_.top(i), &Threadgroup::start);
}

void Threadgroup::start() {
  Threadgroup* group = running;
  const unsigned thread = group->current_;
  group->launch_->entry(&group->fibers_[thread].lane);
  if (group->stacks_.overflowed(thread)) {
    group->faults_->add(STACK_LIMIT, {"", 0, 0},
                        "a thread's variables need more than " + std::to_string(Stacks::BYTES) + " bytes");
    group->faults_->stop();
  }
  group->pause(State::finished, {"", 0, 0});
  abort();  // a finished fiber never gets another turn
}

// Runs a SIMD group until nothing of it can go on; true if it waits at a threadgroup barrier.
bool Threadgroup::run_simdgroup(unsigned simdgroup) {
  const unsigned first = simdgroup * SIMD_WIDTH, count = std::min(SIMD_WIDTH, threads_ - first);
  for (;;) {
    take_turns(first, count);
    if (faults_->stopped()) return false;
    if (!agree(first, count)) {
      faults_->stop();
      return false;
    }
    unsigned active = 0;
    for (unsigned i = 0; i < count; ++i) {
      if (fibers_[first + i].state == State::waits) return true;
      if (fibers_[first + i].state == State::exchanges) active |= 1u << i;
    }
    if (active == 0) return false;
    for (unsigned i = 0; i < count; ++i) {
      if (!(active >> i & 1)) continue;
      fibers_[first + i].state = State::ready;
      fibers_[first + i].active = active;
    }
  }
}

// Every lane that can run does so once, until it pauses; each hands over to the next without coming back here.
void Threadgroup::take_turns(unsigned first, unsigned count) {
  turns_.clear();
  arrange(lane_order_, count);
  for (unsigned lane : lane_order_)
    if (fibers_[first + lane].state == State::ready) turns_.push_back(first + lane);
  if (turns_.empty()) return;
  turn_ = 0;
  current_ = turns_[0];
  switch_context(scheduler_, fibers_[current_].context);
}

void Threadgroup::pause(State state, const Site& site) {
  Fiber& fiber = fibers_[current_];
  fiber.state = state;
  fiber.site = site;
  ++turn_;
  if (turn_ == turns_.size() || faults_->stopped()) return switch_context(fiber.context, scheduler_);
  current_ = turns_[turn_];
  switch_context(fiber.context, fibers_[current_].context);
}

// Whether all lanes that have not finished stand at the same call.
bool Threadgroup::agree(unsigned first, unsigned count) {
  const Fiber* one = nullptr;
  for (unsigned i = first; i < first + count; ++i) {
    const Fiber& other = fibers_[i];
    if (other.state == State::finished) continue;
    if (!one) one = &other;
    if (other.state == one->state && same(other.site, one->site)) continue;
    faults_->add(DIVERGENCE, one->site,
                 "threads of a SIMD group have parted: thread " +
                     std::to_string(one->lane.thread_index_in_threadgroup) + " is here, and thread " +
                     std::to_string(i) + " at " + text(other.site));
    return false;
  }
  return true;
}

bool Threadgroup::meet_at_barrier() {
  const Fiber* one = nullptr;
  for (unsigned i = 0; i < threads_ && !one; ++i)
    if (fibers_[i].state == State::waits) one = &fibers_[i];
  for (unsigned i = 0; i < threads_; ++i) {
    const Fiber& other = fibers_[i];
    if (other.state == State::waits && same(other.site, one->site)) continue;
    const std::string where = other.state == State::finished ? "has returned" : "waits at " + text(other.site);
    faults_->add(DIVERGENCE, one->site,
                 "not all threads reach this threadgroup_barrier: thread " + std::to_string(i) + " " + where);
    return false;
  }
  for (unsigned i = 0; i < threads_; ++i) fibers_[i].state = State::ready;
  epochs_.pass(barrier_flags_);
  return true;
}

void Threadgroup::barrier(unsigned flags, const Site& site) {
  barrier_flags_ = flags;
  pause(State::waits, site);
}

void Threadgroup::simdgroup_barrier(unsigned flags, const Site& site) {
  pause(State::exchanges, site);
  const Lane& me = lane();
  const unsigned first = static_cast<unsigned>(__builtin_ctz(fibers_[current_].active));
  // Nobody may run on before the epoch has passed, and any lane may be the first to go on.
  if (me.thread_index_in_simdgroup == first) simd_epochs_[me.simdgroup_index_in_threadgroup].pass(flags);
  pause(State::exchanges, site);
}

const unsigned char* Threadgroup::exchange(const void* value, unsigned size, const Site& site, unsigned* active,
                                           unsigned* lane_out) {
  Fiber& fiber = fibers_[current_];
  const unsigned lane = fiber.lane.thread_index_in_simdgroup;
  auto& slot = slots_[fiber.lane.simdgroup_index_in_threadgroup][fiber.parity];
  memcpy(slot[lane], value, size);
  fiber.parity ^= 1;
  pause(State::exchanges, site);
  *active = fiber.active;
  *lane_out = lane;
  return slot[0];
}

void* Threadgroup::variable(unsigned id, size_t size, const Site& site) {
  if (arena_.variables.size() <= id) arena_.variables.resize(id + 1);
  if (char* known = arena_.variables[id]) return known;
  char* address = arena_.take(size);
  if (!address || arena_.used > launch_->threadgroup_limit)
    give_up(THREADGROUP_LIMIT, site,
            "with this variable the kernel's threadgroup memory is over the limit of " +
                std::to_string(launch_->threadgroup_limit) + " bytes");
  return arena_.variables[id] = address;
}

void Threadgroup::give_up(FaultKind kind, const Site& site, const std::string& message) {
  faults_->add(kind, site, message);
  faults_->stop();
  pause(State::finished, site);
  abort();  // the launch has ended, and with it every fiber
}

void Threadgroup::arrange(std::vector<unsigned>& order, unsigned count) {
  order.resize(count);
  for (unsigned i = 0; i < count; ++i) order[i] = launch_->order == REVERSE ? count - 1 - i : i;
  if (launch_->order < 0) return;
  for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[random_() % i]);
}

extern "C" void msl_threadgroup_barrier(unsigned flags, Site site) { running->barrier(flags, site); }

extern "C" void msl_simdgroup_barrier(unsigned flags, Site site) { running->simdgroup_barrier(flags, site); }

extern "C" const unsigned char* msl_exchange(const void* value, unsigned size, Site site, unsigned* active,
                                             unsigned* lane) {
  return running->exchange(value, size, site, active, lane);
}

extern "C" void* msl_threadgroup_variable(unsigned id, unsigned long size, Site site) {
  return running->variable(id, size, site);
}

extern "C" void msl_diverged(const char* what, Site site) { running->give_up(DIVERGENCE, site, what); }

// checker.cpp asks whose access it judges.
Threadgroup& running_threadgroup() { return *running; }

}  // namespace msl
