// Chooses the instruction set once, when the first kernel is asked for.
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace moepack {

#if defined(__aarch64__)
namespace neon {
extern const Kernels table;
}
namespace neondot {
extern const Kernels table;
}
#elif defined(__x86_64__)
namespace baseline {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512vnni {
extern const Kernels table;
}
#else
namespace baseline {
extern const Kernels table;
}
#endif

namespace {

struct Choice {
  const Kernels* table;
  bool runs;
};

#if defined(__x86_64__)
// Every CPU with AVX2 has F16C, which older compilers cannot ask for.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool has_avx512vnni() {
  return has_avx512() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
}
#elif defined(__aarch64__)
bool has_dot_products() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return true;  // every Apple processor that runs macOS on arm64
#endif
}
#endif

const Kernels& choose() {
#if defined(__aarch64__)
  const Choice choices[] = {{&neondot::table, has_dot_products()}, {&neon::table, true}};
#elif defined(__x86_64__)
  __builtin_cpu_init();
  const Choice choices[] = {{&avx512vnni::table, has_avx512vnni()},
                            {&avx512::table, has_avx512()},
                            {&avx2::table, has_avx2()},
                            {&baseline::table, true}};
#else
  const Choice choices[] = {{&baseline::table, true}};
#endif
  const char* const wanted = std::getenv("MOEPACK_ISA");
  for (const Choice& choice : choices)
    if (choice.runs && (wanted == nullptr || std::string(wanted) == choice.table->name)) return *choice.table;
  throw std::runtime_error(std::string("MOEPACK_ISA=") + wanted + " names no instruction set that this machine runs");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace moepack
