// One instruction set's kernels as a table.
#include "declarations.h"

#define MOEPACK_TEXT(x) #x
#define MOEPACK_NAME(x) MOEPACK_TEXT(x)

namespace moepack::MOEPACK_ISA {

extern const Kernels table;
const Kernels table = {
    MOEPACK_NAME(MOEPACK_ISA), planes,          fewest_in_panels, round_row,      product_scratch, matmul,
    swiglu,                    accumulate,      row,              rms_norm,       add_share,       add_gated,
    route,                     attention_cache, attention_start,  attention_block, attention_join, attention_finish,
    delta_inputs,              delta_shift,     delta_slice,      delta_outputs};

}  // namespace moepack::MOEPACK_ISA
