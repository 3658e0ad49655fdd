"""The limits of the device that stands in for a GPU, as Apple documents them; no other file repeats one."""

THREADGROUP_MEMORY = 32 * 1024  # bytes, of arguments and automatic variables together
SIMD_WIDTH = 32
MAX_THREADS = 1024  # of a threadgroup

# What follows is of the host's side: of buffers, encoders and queues.
PAGE = 16 * 1024  # memory wrapped without copying begins and ends at one
MAX_BUFFERS = 31  # argument indices of a kernel
MAX_BYTES = 4096  # of one setBytes
THREADGROUP_GRANULE = 16  # lengths of threadgroup memory are multiples of it
MAX_COMMAND_BUFFERS = 64  # of a queue, made and not completed; one more blocks its maker

# Not Apple's but the stand-in's, which tests may set lower.
MAX_BUFFER_LENGTH = 4 << 30
WORKING_SET = 12 << 30
MEMORY = 16 << 30  # allocations beyond it are refused
FAMILIES = ("MTLGPUFamilyApple7", "MTLGPUFamilyApple8", "MTLGPUFamilyApple9", "MTLGPUFamilyMetal3")
