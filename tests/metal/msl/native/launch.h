// One launch, as Python describes it (native.py mirrors these structs), and the list of what went wrong in it.
#pragma once

#include <atomic>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>

#include "interface.h"

namespace msl {

struct Fault {
  unsigned kind, line;
  char file[128], message[256];
};

struct Binding {
  char* address;  // nullptr: nothing is bound here
  unsigned long length;
  unsigned memory, writable;
};

constexpr long FORWARD = -1, REVERSE = -2;  // any other order is the seed of a random one

struct Launch {
  Entry entry;
  unsigned threadgroups[3], threads_per_threadgroup[3], threads[3];
  unsigned workers, checked;
  long order;
  unsigned threadgroup_limit, threadgroup_lengths[MAX_INDEX];
  Binding bindings[MAX_INDEX];
  const Region* constants;  // a program's own
  unsigned constant_count;
  Fault* faults;
  unsigned capacity, found;
};

// Collects faults, each line's of a kind once. Whoever runs looks at `stopped` and gives up.
class Faults {
 public:
  explicit Faults(Launch& launch) : launch_(launch) {}

  void add(FaultKind kind, const Site& site, const std::string& message) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (launch_.found == launch_.capacity || known(kind, site)) return;
    Fault& fault = launch_.faults[launch_.found++];
    fault.kind = kind;
    fault.line = site.line;
    snprintf(fault.file, sizeof fault.file, "%s", site.file);
    snprintf(fault.message, sizeof fault.message, "%s", message.c_str());
  }

  void stop() { stopped_.store(true, std::memory_order_relaxed); }
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }

 private:
  bool known(FaultKind kind, const Site& site) const {
    for (unsigned i = 0; i < launch_.found; ++i) {
      const Fault& fault = launch_.faults[i];
      if (fault.kind == kind && fault.line == site.line && !strncmp(fault.file, site.file, sizeof fault.file - 1))
        return true;
    }
    return false;
  }

  Launch& launch_;
  std::mutex mutex_;
  std::atomic<bool> stopped_{false};
};

inline bool same(const Site& a, const Site& b) {
  return a.line == b.line && a.column == b.column && (a.file == b.file || !strcmp(a.file, b.file));
}

inline std::string text(const Site& site) { return std::string(site.file) + ":" + std::to_string(site.line); }

}  // namespace msl
