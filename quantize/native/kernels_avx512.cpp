#if defined(__x86_64__)
#define MOEPACK_ISA avx512
#include "kernels_of_isa.h"
#endif
