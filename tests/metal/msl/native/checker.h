// Judges every access of a checked program to memory that threads share: is it inside what was bound, may it be
// written, was it written before it is read, and is it ordered with what other threads did there.
//
// Two accesses of a threadgroup are ordered if a threadgroup barrier for that memory lies between, or, within a SIMD
// group, a SIMD-group barrier; those of two threadgroups never are. A race is two that are not ordered, one of which
// writes, unless both are atomic. One checker follows one launch, on one OS thread; it is exact to the byte.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "threadgroup.h"

namespace msl {

// Who touched a cell last, and when. Group 0 is nobody; groups count from 1.
struct Touch {
  const Site* site = nullptr;
  uint32_t group = 0, thread = 0, epoch = 0, simd_epoch = 0;
  bool several = false;  // other threads of the SIMD group did too, since its latest barrier

  uint32_t simdgroup() const { return thread / SIMD_WIDTH; }
  bool ordered_before(const Touch& later) const;
};

// Those that touched a cell without being ordered: enough of them to find one that conflicts with any later access.
struct Crowd {
  Touch last, other, elsewhere;  // of two SIMD groups of a threadgroup, and of another threadgroup

  void add(const Touch& touch);
  const Touch* conflict(const Touch& touch) const;
};

struct Cell {
  Touch write;
  Crowd readers, atomic_readers, atomic_writers;
};

// A cell for every four bytes of a page of memory; for every byte, once a part of a word has been touched there.
class Shadow {
 public:
  void prepare(size_t offset, size_t size);
  unsigned width() const { return width_; }
  Cell& at(size_t offset) { return cells_[offset / width_]; }

 private:
  void refine();

  static constexpr size_t WORD = 4;
  unsigned width_ = WORD;
  std::vector<Cell> cells_;
};

class Checker {
 public:
  explicit Checker(const Launch& launch) : launch_(launch) {}

  void device(const char* address, size_t size, unsigned access, const Site* site);
  void constant(const char* address, size_t size, unsigned access, const Site* site);
  void threadgroup(const char* address, size_t size, unsigned access, const Site* site);
  const Site* keep(const Site& site);

 private:
  struct Visit {
    const char* address;
    size_t size;
    unsigned access;
    Memory memory;
    Touch touch;
  };

  Visit visit(const char* address, size_t size, unsigned access, Memory memory, const Site* site) const;
  void must_be_written(const Visit& visit);
  void follow(const Visit& visit);
  bool judge(const Visit& visit, Cell& cell);
  static void note(const Visit& visit, Cell& cell);
  void report_race(const Visit& visit, const Touch& earlier, const char* what);
  [[noreturn]] void report_bounds(const Visit& visit);
  std::string nearest(const Visit& visit) const;
  int bound(const char* address, size_t size, unsigned memories) const;
  bool written_somewhere(const char* address) const;
  Shadow& shadow(uintptr_t page);

  const Launch& launch_;
  std::unordered_map<uintptr_t, std::unique_ptr<Shadow>> pages_;
  struct Before {
    bool operator()(const Site& a, const Site& b) const;
  };
  std::set<Site, Before> sites_;
};

}  // namespace msl
