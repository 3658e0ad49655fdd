"""The device: what it can do, and the maker of everything else."""

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

from metal import limits

from . import settings
from .accounts import account
from .bridge import NSObject, over_retained, selector
from .buffer import MTLBuffer
from .command_buffer import MTLCommandQueue
from .constants import ENUMS, MTLSize
from .event import MTLEvent, MTLFence, MTLSharedEvent
from .failures import ordered
from .faults import NSError, need
from .library import MTLCompileOptions, MTLComputePipelineState, MTLFunction, MTLLibrary, compiled
from .memory import Region, Wrapped, address_of

SHARED, PRIVATE = ENUMS["MTLStorageModeShared"], ENUMS["MTLStorageModePrivate"]
Deallocator = Callable[[int, int], None]


class MTLDevice(NSObject):
    """The one device that there is."""

    def __init__(self) -> None:
        super().__init__()
        self._allocated = 0

    @selector(gives="@")
    def name(self) -> str:
        return "Stand-in for an Apple GPU"

    @selector(gives="Q")
    def registryID(self) -> int:
        return 1

    @selector("q", gives="Z")
    def supportsFamily_(self, family: int) -> bool:
        return family in (ENUMS[name] for name in settings.current().families)

    @selector(gives="Z")
    def hasUnifiedMemory(self) -> bool:
        return True

    @selector(gives="Q")
    def maxBufferLength(self) -> int:
        return settings.current().max_buffer_length

    @selector(gives="Q")
    def recommendedMaxWorkingSetSize(self) -> int:
        return settings.current().working_set

    @selector(gives="Q")
    def currentAllocatedSize(self) -> int:
        return self._allocated

    @selector(gives="Q")
    def maxThreadgroupMemoryLength(self) -> int:
        return limits.THREADGROUP_MEMORY

    @selector(gives="S")
    def maxThreadsPerThreadgroup(self) -> MTLSize:
        return MTLSize(limits.MAX_THREADS, limits.MAX_THREADS, limits.MAX_THREADS)

    # Memory.

    @selector("QQ", gives="@")
    def newBufferWithLength_options_(self, length: int, options: int) -> MTLBuffer | None:
        if not self._granted(length, options):
            return None
        return self._buffer(Region(length), length, options)

    @selector("nQQ", gives="@")
    def newBufferWithBytes_length_options_(self, data: Any, length: int, options: int) -> MTLBuffer | None:
        if not self._granted(length, options):
            return None
        region = Region(length)
        ctypes.memmove(region.host, address_of(data), length)
        return self._buffer(region, length, options)

    @selector("nQQ?", gives="@")
    def newBufferWithBytesNoCopy_length_options_deallocator_(
        self, memory: Any, length: int, options: int, deallocator: Deallocator | None
    ) -> MTLBuffer | None:
        page, storage = limits.PAGE, options >> 4 & 15
        need(length % page == 0, f"memory to be wrapped is {length} bytes long, not a multiple of {page}")
        need(address_of(memory) % page == 0, f"memory to be wrapped does not begin at a multiple of {page}")
        need(storage == SHARED, "memory to be wrapped has to be shared")
        if not self._granted(length, options):
            return None
        buffer = self._buffer(Wrapped(memory, length), length, options)
        if deallocator is not None:
            weakref.finalize(buffer, deallocator, address_of(memory), length)
        return buffer

    def _granted(self, length: int, options: int) -> bool:
        """Whether so much memory is to be had; it is an error to ask for what can never be."""
        now = settings.current()
        need(length > 0, "a buffer of no bytes")
        most = now.max_buffer_length
        need(length <= most, f"a buffer of {length} bytes is longer than the device's maximum of {most}")
        need(options >> 4 & 15 in (SHARED, PRIVATE), f"options {options} name a storage mode that this device has not")
        return not ordered.refuses() and self._allocated + _whole_pages(length) <= now.memory

    def _buffer(self, memory: Region | Wrapped, length: int, options: int) -> MTLBuffer:
        size = _whole_pages(length)
        buffer = MTLBuffer(memory, length, options, account.allocated("buffer", size))
        self._allocated += size
        weakref.finalize(buffer, self._release, size)
        made: MTLBuffer = over_retained(buffer)
        return made

    def _release(self, size: int) -> None:
        self._allocated -= size

    # Everything else.

    @selector(gives="@")
    def newCommandQueue(self) -> MTLCommandQueue:
        return self._made("queue", MTLCommandQueue(limits.MAX_COMMAND_BUFFERS))

    @selector("Q", gives="@")
    def newCommandQueueWithMaxCommandBufferCount_(self, count: int) -> MTLCommandQueue:
        return self._made("queue", MTLCommandQueue(count))

    @selector(gives="@")
    def newEvent(self) -> MTLEvent:
        return self._made("event", MTLEvent())

    @selector(gives="@")
    def newSharedEvent(self) -> MTLSharedEvent:
        return self._made("event", MTLSharedEvent())

    @selector(gives="@")
    def newFence(self) -> MTLFence:
        return self._made("fence", MTLFence())

    @selector("@@o", gives="@")
    def newLibraryWithSource_options_error_(
        self, source: str, options: MTLCompileOptions | None, error: None
    ) -> tuple[MTLLibrary | None, NSError | None]:
        library, failure = compiled(source, options)
        return (None if library is None else self._made("library", library)), failure

    @selector("@o", gives="@")
    def newComputePipelineStateWithFunction_error_(
        self, function: MTLFunction, error: None
    ) -> tuple[MTLComputePipelineState | None, NSError | None]:
        need(isinstance(function, MTLFunction), f"{function!r} is not a function")
        pipeline = self._made("pipeline", MTLComputePipelineState(function))
        return pipeline, None

    def _made(self, kind: str, thing: Any) -> Any:
        thing._allocation = account.allocated(kind)
        thing._allocation.label = getattr(thing, "_kernel", None)
        return over_retained(thing)


def _whole_pages(length: int) -> int:
    return -(-length // limits.PAGE) * limits.PAGE
