"""The limits of the device that stands in for a GPU, as Apple documents them; no other file repeats one."""

THREADGROUP_MEMORY = 32 * 1024  # bytes, of arguments and automatic variables together
SIMD_WIDTH = 32
MAX_THREADS = 1024  # of a threadgroup
