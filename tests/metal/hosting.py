"""A small host of Metal for tests: a device, a queue, a few kernels, and short names for what tests do all the time."""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import Metal
import numpy as np
import objc

SOURCE = """
#include <metal_stdlib>
using namespace metal;

kernel void increment(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i] += 1.0f; }

kernel void scale(device const float* from [[buffer(0)]],
                  device float* to [[buffer(1)]],
                  constant float& factor [[buffer(2)]],
                  uint i [[thread_position_in_grid]]) {
  to[i] = factor * from[i];
}

kernel void reversed(device const float4* from [[buffer(0)]],
                     device float4* to [[buffer(1)]],
                     threadgroup float4* part [[threadgroup(0)]],
                     uint i [[thread_index_in_threadgroup]],
                     uint n [[threads_per_threadgroup]]) {
  part[i] = from[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  to[i] = part[n - 1 - i];
}

kernel void shifted(device const float* from [[buffer(0)]],
                    device float* to [[buffer(1)]],
                    uint i [[thread_position_in_grid]]) {
  to[i] = from[i + 1];
}

struct Pair {
  float4 first, second;
};

kernel void paired(threadgroup Pair* pair [[threadgroup(0)]], uint i [[thread_position_in_grid]]) {
  pair[i].first = 0;
}

kernel void everybody(device float* to [[buffer(0)]], uint i [[thread_position_in_grid]]) { to[0] = float(i); }
"""
SHARED = 0
UNTRACKED = 256
COUNT = 64  # floats of a buffer, unless a test says otherwise


class Host:
    """The device and what is made once."""

    def __init__(self) -> None:
        self.device = Metal.MTLCreateSystemDefaultDevice()
        self.queue = self.device.newCommandQueue()
        self.library, error = self.device.newLibraryWithSource_options_error_(SOURCE, None, None)
        assert error is None, error

    def pipeline(self, name: str) -> Any:
        function = self.library.newFunctionWithName_(name)
        pipeline, error = self.device.newComputePipelineStateWithFunction_error_(function, None)
        assert error is None, error
        return pipeline

    def buffer(self, label: str, count: int = COUNT, options: int = SHARED) -> Any:
        """Of zeros."""
        made = self.device.newBufferWithLength_options_(4 * count, options)
        made.setLabel_(label)
        return made

    @contextmanager
    def commands(self, label: str = "commands", queue: Any = None) -> Iterator[Any]:
        """A command buffer, committed in the end."""
        with objc.autorelease_pool():
            made = (queue or self.queue).commandBuffer()
            made.setLabel_(label)
            yield made
            made.commit()

    @contextmanager
    def encoder(self, commands: Any, kernel: str, kind: int = 0) -> Iterator[Any]:
        """An encoder with the pipeline of a kernel, ended in the end."""
        encoder = commands.computeCommandEncoderWithDispatchType_(kind)
        encoder.setLabel_(kernel)
        encoder.setComputePipelineState_(self.pipeline(kernel))
        yield encoder
        encoder.endEncoding()

    def increment(self, commands: Any, buffer: Any, times: int = 1) -> None:
        """A pass of its own."""
        with self.encoder(commands, "increment") as encoder:
            bind(encoder, [buffer])
            for _ in range(times):
                run(encoder)

    def scale(self, commands: Any, source: Any, target: Any, factor: float) -> None:
        """A pass of its own."""
        with self.encoder(commands, "scale") as encoder:
            bind(encoder, [source, target, struct.pack("<f", factor)])
            run(encoder)


def bind(encoder: Any, arguments: Sequence[Any]) -> None:
    """Buffers, or bytes, from index 0 on."""
    for index, argument in enumerate(arguments):
        if isinstance(argument, bytes):
            encoder.setBytes_length_atIndex_(argument, len(argument), index)
        else:
            encoder.setBuffer_offset_atIndex_(argument, 0, index)


def run(encoder: Any, count: int = COUNT) -> None:
    encoder.dispatchThreads_threadsPerThreadgroup_((count, 1, 1), (min(count, 32), 1, 1))


def floats(buffer: Any) -> np.ndarray:
    """The contents, as the host sees them whenever it looks."""
    return np.frombuffer(buffer.contents().as_buffer(buffer.length()), np.float32)
