// How this process's memory behaves, and how fast the machine's memory is.
#pragma once

#include "arrays.h"

namespace moepack {

void bind_memory(nb::module_& m);

}  // namespace moepack
