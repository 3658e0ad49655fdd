// All kernels in a namespace of their own, so that the linker can never mix code of two instruction sets.
#pragma once
#include "descent.h"

namespace moepack::MOEPACK_ISA {

#define MOEPACK_NAME_OF(isa) #isa
#define MOEPACK_NAME(isa) MOEPACK_NAME_OF(isa)
extern const Kernels kernels;
const Kernels kernels = {MOEPACK_NAME(MOEPACK_ISA), dequantize, minmax, mse_by_descent};

}  // namespace moepack::MOEPACK_ISA
