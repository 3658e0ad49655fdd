// Metal's language and standard library for clang on a CPU: as much of them as our kernels use, and no more.
//
// device, constant and threadgroup are address spaces of clang, so that Metal's type errors are ours too; on a CPU they
// are all plain addresses. This is included before every translated kernel, which has been through a preprocessor.
#pragma once

#include "../native/interface.h"

#include "spaces.h"
#include "types.h"
#include "math.h"
#include "simdgroup.h"
#include "atomic.h"
#include "matrix.h"
#include "entry.h"
