// Stacks that one OS thread switches between. A Context is where a stack stopped; what it holds besides is the ABI's
// callee-saved registers, on the stack itself. x86-64 and arm64 switch in a few instructions, others by ucontext.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

namespace msl {

#if defined(__x86_64__) || defined(__aarch64__)

struct Context {
  void* stopped = nullptr;
};

extern "C" void msl_switch(void** from, void* to);

inline void switch_context(Context& from, Context& to) { msl_switch(&from.stopped, to.stopped); }

#if defined(__x86_64__)
constexpr size_t SAVED = 6;  // rbp, rbx, r12 to r15

// As if `start` had been called and had not begun: a return address of its own keeps the stack aligned.
inline void prepare_context(Context& context, char* top, void (*start)()) {
  void** at = reinterpret_cast<void**>(top);
  *--at = nullptr;
  *--at = reinterpret_cast<void*>(start);
  for (size_t i = 0; i < SAVED; ++i) *--at = nullptr;
  context.stopped = at;
}
#else
constexpr size_t SAVED = 20, LINK = 11;  // d8 to d15, then x19 to x30; x30 is where `ret` goes

inline void prepare_context(Context& context, char* top, void (*start)()) {
  void** frame = reinterpret_cast<void**>(top) - SAVED;
  for (size_t i = 0; i < SAVED; ++i) frame[i] = nullptr;
  frame[8 + LINK] = reinterpret_cast<void*>(start);
  context.stopped = frame;
}
#endif

#else
}  // namespace msl
#include <ucontext.h>
namespace msl {

struct Context {
  ucontext_t saved;
};

inline void switch_context(Context& from, Context& to) { swapcontext(&from.saved, &to.saved); }

inline void prepare_context(Context& context, char* top, void (*start)()) {
  constexpr size_t USABLE = 192 << 10;
  getcontext(&context.saved);
  context.saved.uc_stack.ss_sp = top - USABLE;
  context.saved.uc_stack.ss_size = USABLE;
  makecontext(&context.saved, start, 0);
}
#endif

// The stacks of a threadgroup's threads. Memory that was never touched costs nothing. Below each lies another, or what
// none uses, so that a stack that grows too large is found by its mark, if its thread writes all that it has declared.
class Stacks {
 public:
  static constexpr size_t BYTES = 256 << 10;

  explicit Stacks(size_t count) : size_((count + 1) * BYTES) {
    void* memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
  }
  ~Stacks() { munmap(memory_, size_); }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  // Tops are staggered, or all stacks would compete for one set of the first-level cache.
  char* top(size_t i) const { return memory_ + (i + 2) * BYTES - 256 - i % 61 * 192; }
  void mark(size_t i) const { *lowest(i) = MARK; }
  bool overflowed(size_t i) const { return *lowest(i) != MARK; }

 private:
  static constexpr uint64_t MARK = 0x6d6f65206d6f6521;
  uint64_t* lowest(size_t i) const { return reinterpret_cast<uint64_t*>(memory_ + (i + 1) * BYTES); }

  char* memory_;
  size_t size_;
};

}  // namespace msl
