// How this process's memory behaves, and how fast the machine's memory is.
#pragma once

#include <cstdlib>
#include <memory>

#include "arrays.h"

namespace moepack {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
template <typename T> using Room = std::unique_ptr<T[], Free>;

// Uninitialised memory from a cache line on; much of it lies on huge pages, which the system gives with fewer faults.
// Raises std::bad_alloc.
void* memory_for(size_t bytes);
template <typename T> Room<T> room_for(int64_t count) {
  return Room<T>(static_cast<T*>(memory_for(static_cast<size_t>(count) * sizeof(T))));
}

void bind_memory(nb::module_& m);

}  // namespace moepack
