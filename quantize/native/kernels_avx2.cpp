#if defined(__x86_64__)
#define MOEPACK_ISA avx2
#include "kernels_of_isa.h"
#endif
