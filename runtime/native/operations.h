// Binds the thread pool and every kernel.
#pragma once

#include "arrays.h"

namespace moepack {

void bind_operations(nb::module_& m);
void bind_attention(nb::module_& m);
void bind_delta(nb::module_& m);

}  // namespace moepack
