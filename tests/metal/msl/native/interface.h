// What translated kernels and the runtime that executes them say to each other. Both include it, so it names plain C
// types only; the numbers of its enums are known to Python too (native.py).
#pragma once

namespace msl {

constexpr unsigned SIMD_WIDTH = MSL_SIMD_WIDTH, MAX_INDEX = 31, SLOT_BYTES = 16;
static_assert(SIMD_WIDTH == 32, "active lanes are bits of an unsigned");

// A place in a .metal file.
struct Site {
  const char* file;
  unsigned line, column;
};

enum Memory : unsigned { DEVICE = 1, CONSTANT = 2, THREADGROUP = 3 };  // also the numbers of the address spaces
enum Access : unsigned { READ = 1, WRITE = 2, ATOMIC = 4 };  // bits
enum BarrierFlags : unsigned { ORDERS_DEVICE = 1, ORDERS_THREADGROUP = 2 };
enum FaultKind : unsigned {
  DIVERGENCE, THREADGROUP_LIMIT, STACK_LIMIT, RACE, OUT_OF_BOUNDS, CONST_WRITE, CONSTANT_MISUSE, UNINITIALISED
};

// What all threads of a threadgroup see alike; named as in MSL.
struct Group {
  unsigned threadgroup_position_in_grid[3], threads_per_threadgroup[3], dispatch_threads_per_threadgroup[3];
  unsigned threadgroups_per_grid[3], threads_per_grid[3];
  unsigned simdgroups_per_threadgroup, threads_per_simdgroup;
  void* const* buffers;
  void* const* threadgroup_memory;
};

// What one thread sees.
struct Lane {
  const Group* group;
  unsigned thread_position_in_grid[3], thread_position_in_threadgroup[3];
  unsigned thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
  unsigned thread_index_in_quadgroup, quadgroup_index_in_threadgroup;
};

using Entry = void (*)(const Lane*);

// The tables that a compiled program exports: msl_kernels, and, if it is checked, msl_constants; and how long they are.
struct Argument {
  const char* name;
  unsigned index, memory, size, alignment, writable;
};
struct Region {
  const char* address;
  unsigned long size;
};
struct Kernel {
  const char* name;
  Entry entry;
  const Argument* arguments;
  unsigned argument_count, max_threads;
};

extern "C" {
void msl_threadgroup_barrier(unsigned flags, Site site);
void msl_simdgroup_barrier(unsigned flags, Site site);
// Gives a value to the SIMD group and waits for the others': they lie SLOT_BYTES apart, by lane.
const unsigned char* msl_exchange(const void* value, unsigned size, Site site, unsigned* active, unsigned* lane);
void* msl_threadgroup_variable(unsigned id, unsigned long size, Site site);
[[noreturn]] void msl_diverged(const char* what, Site site);
// Checked programs call these before each access to memory that is not the thread's own.
void msl_check_device(const void* address, unsigned long size, unsigned access, const Site* site);
void msl_check_constant(const void* address, unsigned long size, unsigned access, const Site* site);
void msl_check_threadgroup(const void* address, unsigned long size, unsigned access, const Site* site);
void msl_check_here(const void* address, unsigned long size, unsigned access, unsigned memory, Site site);
}

}  // namespace msl
