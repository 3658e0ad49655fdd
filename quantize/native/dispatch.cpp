// Which instruction set runs. Every set gives the same bytes, so the choice is about speed only.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace moepack {

namespace baseline {
extern const Kernels kernels;
}

#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

struct Available {
    const Kernels* sets[4] = {&baseline::kernels};

    Available() {
#if defined(__x86_64__)
        int count = 1;
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt")) sets[count++] = &avx2::kernels;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            sets[count++] = &avx512::kernels;
#endif
    }
};

// On arm64 the compiler uses NEON in the plainest set, and the engine knows no other name for it.
bool is_compiled_in([[maybe_unused]] const char* name) {
#if defined(__aarch64__)
    return std::strcmp(name, "neon") == 0;
#else
    return false;
#endif
}

}  // namespace

const Kernels* const* available_kernels() {
    static const Available available;
    return available.sets;
}

const Kernels* chosen_kernels() {
    const char* wanted = std::getenv("MOEPACK_ISA");
    if (wanted && is_compiled_in(wanted)) wanted = baseline::kernels.name;
    const Kernels* best = nullptr;
    for (const Kernels* const* set = available_kernels(); *set; set++) {
        best = *set;
        if (wanted && std::strcmp(wanted, best->name) == 0) return best;
    }
    return wanted ? nullptr : best;
}

}  // namespace moepack
