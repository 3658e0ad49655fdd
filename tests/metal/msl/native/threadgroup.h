// Executes threadgroups, one after the other, on one OS thread: a fiber for each thread, SIMD groups of 32 in turns.
//
// A SIMD group runs until all its threads have finished or wait at one threadgroup barrier; within it, lanes take turns
// between SIMD functions. Threads of a SIMD group that meet different calls, or barriers that not all threads reach,
// are faults and end the launch. The order of turns never matters to a correct kernel, and is the launch's to choose.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "launch.h"

namespace msl {

class Checker;

enum class State : unsigned char { ready, exchanges, waits, finished };

struct Fiber {
  Context context;
  State state;
  unsigned char parity;  // which of two slots its next exchange uses
  unsigned active;       // the lanes that took part in the latest
  Site site;
  Lane lane;
};

// Threadgroup memory: the kernel's arguments first, then its automatic variables as they are met.
struct Arena {
  struct Part {
    char* address;
    unsigned long size;
  };
  static constexpr size_t BYTES = 1 << 20;
  std::unique_ptr<char[]> memory{new char[BYTES]};
  std::vector<Part> parts;
  std::vector<char*> variables;  // by the number the translation gave them
  size_t used = 0;

  void clear();
  char* take(size_t size);
};

// How often a barrier has ordered a memory.
struct Epochs {
  unsigned device = 0, threadgroup = 0;
  void pass(unsigned flags);
};

class Threadgroup {
 public:
  Threadgroup();
  ~Threadgroup();

  void begin(const Launch& launch, Faults& faults, Checker* checker);
  void run(unsigned long group);

  // What a kernel asks for, in the name of the fiber that is running.
  void barrier(unsigned flags, const Site& site);
  void simdgroup_barrier(unsigned flags, const Site& site);
  const unsigned char* exchange(const void* value, unsigned size, const Site& site, unsigned* active, unsigned* lane);
  void* variable(unsigned id, size_t size, const Site& site);
  [[noreturn]] void give_up(FaultKind kind, const Site& site, const std::string& message);

  const Launch& launch() const { return *launch_; }
  Checker* checker() const { return checker_; }
  Faults& faults() const { return *faults_; }
  const Arena& arena() const { return arena_; }
  const Lane& lane() const { return fibers_[current_].lane; }
  const Epochs& epochs() const { return epochs_; }
  const Epochs& simd_epochs() const { return simd_epochs_[lane().simdgroup_index_in_threadgroup]; }
  unsigned long number() const { return number_; }
  [[noreturn]] static void start();

 private:
  using Slots = unsigned char[2][SIMD_WIDTH][SLOT_BYTES];

  void place(unsigned long group);
  bool place_memory();
  void place_threads();
  void place_thread(unsigned i, unsigned x, unsigned y, unsigned z);
  bool run_simdgroup(unsigned simdgroup);
  void take_turns(unsigned first, unsigned count);
  bool agree(unsigned first, unsigned count);
  bool meet_at_barrier();
  void pause(State state, const Site& site);
  void arrange(std::vector<unsigned>& order, unsigned count);

  const Launch* launch_ = nullptr;
  Faults* faults_ = nullptr;
  Checker* checker_ = nullptr;
  Stacks stacks_;
  std::vector<Fiber> fibers_;
  std::unique_ptr<Slots[]> slots_;
  Context scheduler_;
  Arena arena_;
  Group group_{};
  void* buffers_[MAX_INDEX]{};
  void* memory_[MAX_INDEX]{};
  Epochs epochs_;
  std::vector<Epochs> simd_epochs_;
  unsigned long number_ = 0;
  unsigned threads_ = 0, simdgroups_ = 0, current_ = 0;
  unsigned barrier_flags_ = 0;
  std::vector<unsigned> turns_, lane_order_, simdgroup_order_;
  size_t turn_ = 0;
  std::minstd_rand random_;
};

}  // namespace msl
