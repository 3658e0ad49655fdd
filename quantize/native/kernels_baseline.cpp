#define MOEPACK_ISA baseline
#include "kernels_of_isa.h"
