// One instruction set's kernels as a table.
#include "declarations.h"

#define MOEPACK_TEXT(x) #x
#define MOEPACK_NAME(x) MOEPACK_TEXT(x)

namespace moepack::MOEPACK_ISA {

extern const Kernels table;
const Kernels table = {
    MOEPACK_NAME(MOEPACK_ISA), planes, round_row, tile_rows, product_scratch, matmul, swiglu, accumulate, row, rms_norm, add_share, add_gated, route,
    attention_prepare,         attention_head, delta_conv, delta_head};

}  // namespace moepack::MOEPACK_ISA
