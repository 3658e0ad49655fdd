"""A stand-in for PyObjC's `Metal`: what of it computes, running real Metal source on the CPU of a Linux machine.

It offers PyObjC's names, checks calls as PyObjC and Metal's validation layer do, and finds what they cannot. Only tests
may see it, and only where there is no real one. `Metal.fake` is for tests alone. ../../README.md says what it shows.
"""

from . import fake
from .buffer import MTLBuffer
from .command_buffer import MTLCommandBuffer, MTLCommandQueue
from .constants import ENUMS, MTLCommandBufferEncoderInfoErrorKey, MTLSize, MTLSizeMake, NSMakeRange, NSRange
from .device import MTLDevice
from .encoder import MTLBlitCommandEncoder, MTLComputeCommandEncoder
from .encoder_info import MTLCommandBufferDescriptor
from .event import MTLEvent, MTLFence, MTLSharedEvent, MTLSharedEventListener
from .library import MTLCompileOptions, MTLComputePipelineState, MTLFunction, MTLLibrary

__all__ = [
    "MTLBlitCommandEncoder",
    "MTLBuffer",
    "MTLCommandBuffer",
    "MTLCommandBufferDescriptor",
    "MTLCommandBufferEncoderInfoErrorKey",
    "MTLCommandQueue",
    "MTLCompileOptions",
    "MTLComputeCommandEncoder",
    "MTLComputePipelineState",
    "MTLCopyAllDevices",
    "MTLCreateSystemDefaultDevice",
    "MTLDevice",
    "MTLEvent",
    "MTLFence",
    "MTLFunction",
    "MTLLibrary",
    "MTLSharedEvent",
    "MTLSharedEventListener",
    "MTLSize",
    "MTLSizeMake",
    "NSMakeRange",
    "NSRange",
    "fake",
]

globals().update(ENUMS)


def MTLCreateSystemDefaultDevice() -> MTLDevice | None:
    return fake.default_device()


def MTLCopyAllDevices() -> list[MTLDevice]:
    device = fake.default_device()
    return [] if device is None else [device]
