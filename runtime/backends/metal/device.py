"""The one module that speaks to Metal, through PyObjC: device, buffers, libraries, command buffers, shared events.

It has never run on Apple hardware: it has met the stand-in of tests/metal/fake, which is held to PyObjC's metadata.
Promises that what Metal refuses becomes one sentence of ours, and that nobody else needs PyObjC. Knows no kernel and
no model. PyObjC retains what `new...` methods return once too often (12.2.2 and before), so buffers, libraries,
pipelines and events are made once and kept; what a token needs beyond, a descriptor for each command buffer apart, is
autoreleased, in a pool of its own.
Whatever is asked of Metal is counted here, in the device's tally.
"""

import mmap
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ....manifests.errors import DeviceError, UnsupportedError
from ...tally import Tally
from ...trace import UNTRACED, Recorder
from .sources import source_line

Bytes: TypeAlias = NDArray[np.uint8]
Size: TypeAlias = tuple[int, int, int]

REMEDY = "give it a smaller --memory, or run with --backend cpu"
LANES = 32  # of a SIMD group, in every kernel of ours
_COMPLAINT = re.compile(r"(?P<file>[\w./-]+):(?P<line>\d+):\d+: (?:fatal )?error: (?P<what>.+)")


class Buffer:
    """Memory that the GPU and the host share. `bytes` is the host's view; who touches it when is the caller's care."""

    def __init__(self, buffer: Any, bytes: Bytes, label: str) -> None:
        self.buffer = buffer
        self.bytes = bytes
        self.label = label
        buffer.setLabel_(label)

    def __len__(self) -> int:
        return len(self.bytes)


Argument: TypeAlias = Buffer | tuple[Buffer, int] | bytes  # a buffer, from an offset on, or a few bytes by value


class Pipeline:
    """A kernel ready to run, with `threads` threads in each threadgroup."""

    def __init__(self, state: Any, label: str, threads: int) -> None:
        self.state = state
        self.label = label
        self.threads = threads


class Library:
    """Compiled source, of which pipelines are made."""

    def __init__(self, device: "Device", library: Any, label: str) -> None:
        self._device = device
        self._library = library
        self._label = label

    def pipeline(self, kernel: str, threads: int) -> Pipeline:
        """The kernel of that name. Raises UnsupportedError if the device cannot run it with `threads` threads."""
        label = f"{kernel} of {self._label}"
        function = self._library.newFunctionWithName_(kernel)
        if function is None:
            raise UnsupportedError(f"there is no kernel {label}")
        self._device.tally.made["function"] += 1
        state, error = self._device.metal.newComputePipelineStateWithFunction_error_(function, None)
        if state is None:
            raise UnsupportedError(f"{self._device.name} cannot run {label}: {_sentence(error)}")
        self._device.tally.made["pipeline"] += 1
        most, lanes = state.maxTotalThreadsPerThreadgroup(), state.threadExecutionWidth()
        if most < threads or lanes != LANES:
            found = f"threadgroups of at most {most} threads and SIMD groups of {lanes}"
            raise UnsupportedError(f"{self._device.name} runs {label} in {found}; it needs {threads} and {LANES}")
        return Pipeline(state, label, threads)


class Event:
    """A counter that the GPU and the host wait for and raise."""

    def __init__(self, event: Any, tally: Tally) -> None:
        self.event = event
        self._tally = tally

    def signal(self, value: int) -> None:
        """Raise it, from the host."""
        self._tally.host_signalled()
        self.event.setSignaledValue_(value)

    def wait(self, value: int, milliseconds: int) -> bool:
        """Wait on the host until it is `value` or more; False if that took too long."""
        self._tally.host_waited()
        return bool(self.event.waitUntilSignaledValue_timeoutMS_(value, milliseconds))


class Commands:
    """One command buffer. Kernels are encoded in sections, whose labels say where a failure was."""

    def __init__(self, metal: Any, buffer: Any, label: str, tally: Tally) -> None:
        self._metal = metal
        self._buffer = buffer
        self._tally = tally
        self._label = label
        self._encoder: Any = None
        self._pipeline: Pipeline | None = None
        buffer.setLabel_(label)

    def section(self, label: str) -> None:
        """Begin a section: its kernels run one after the other."""
        self._end()
        self._encoder = self._buffer.computeCommandEncoderWithDispatchType_(self._metal.MTLDispatchTypeSerial)
        self._encoder.setLabel_(label)
        self._tally.sections += 1

    def run(self, pipeline: Pipeline, groups: Size, arguments: Sequence[Argument]) -> None:
        """Encode a kernel for a grid of threadgroups, with its arguments in the order of their indices."""
        if self._pipeline is not pipeline:
            self._encoder.setComputePipelineState_(pipeline.state)
            self._pipeline = pipeline
        for index, argument in enumerate(arguments):
            self._set(index, argument)
        sizes = self._metal.MTLSizeMake(*groups), self._metal.MTLSizeMake(pipeline.threads, 1, 1)
        self._encoder.dispatchThreadgroups_threadsPerThreadgroup_(*sizes)
        self._tally.kernels += 1

    def signal(self, event: Event, value: int) -> None:
        """Raise the event once all before is done; ends the section."""
        self._end()
        self._buffer.encodeSignalEvent_value_(event.event, value)
        self._tally.gpu_signals += 1

    def wait(self, event: Event, value: int) -> None:
        """Nothing that follows begins before the event has the value; ends the section."""
        self._end()
        self._buffer.encodeWaitForEvent_value_(event.event, value)
        self._tally.gpu_waits += 1

    def commit(self) -> None:
        """Hand it to the GPU; nothing can be added any more."""
        self._end()
        self._buffer.commit()
        self._tally.command_buffers += 1

    def discard(self) -> None:
        """It will never be committed; Metal wants encoding to have ended all the same."""
        self._end()

    def end(self) -> None:
        """Wait until the GPU is done, or has failed; there is nothing to wait for in what an interrupt kept from it."""
        if self._buffer.status() >= self._metal.MTLCommandBufferStatusCommitted:
            self._tally.host_waited()
            self._buffer.waitUntilCompleted()

    @property
    def times(self) -> tuple[float, float]:
        """When the GPU began and ended, in seconds of the host's clock: time.perf_counter's, as far as we know."""
        return float(self._buffer.GPUStartTime()), float(self._buffer.GPUEndTime())

    def finish(self) -> None:
        """Wait until the GPU is done. Raises DeviceError, which names the section, if it failed."""
        self.end()
        self.check()

    def check(self) -> None:
        """Raise DeviceError if the GPU has failed; does not wait."""
        if self._buffer.status() == self._metal.MTLCommandBufferStatusError:
            error = self._buffer.error()
            raise DeviceError(
                f"the GPU failed in {_failed_section(self._metal, error, self._label)}: {_sentence(error)}"
            )

    def _set(self, index: int, argument: Argument) -> None:
        if isinstance(argument, bytes):
            self._encoder.setBytes_length_atIndex_(argument, len(argument), index)
        elif isinstance(argument, Buffer):
            self._encoder.setBuffer_offset_atIndex_(argument.buffer, 0, index)
        else:
            self._encoder.setBuffer_offset_atIndex_(argument[0].buffer, argument[1], index)

    def _end(self) -> None:
        if self._encoder is not None:
            self._encoder.endEncoding()
        self._encoder = self._pipeline = None


class Device:
    """The machine's GPU. Raises UnsupportedError if there is none that kernels of ours can run on.

    `tally` counts what is asked of it, `trace` hears where its users' time goes.
    """

    def __init__(self) -> None:
        self.tally = Tally()
        self.trace: Recorder = UNTRACED
        self._bindings, self._objc = _bindings()
        self.metal = self._bindings.MTLCreateSystemDefaultDevice()
        if self.metal is None:
            raise UnsupportedError("this machine has no Metal device; run with --backend cpu")
        self.name = str(self.metal.name())
        self._require()

    @cached_property
    def _queue(self) -> Any:
        """Where work is enqueued; whoever only asks for the device's limits needs none."""
        self.tally.made["queue"] += 1
        return self.metal.newCommandQueue()

    @property
    def most_in_buffer(self) -> int:
        """Bytes of the largest buffer it makes."""
        return int(self.metal.maxBufferLength())

    @property
    def working_set(self) -> int:
        """Bytes that it advises to stay below in all buffers together."""
        return int(self.metal.recommendedMaxWorkingSetSize())

    def buffer(self, size: int, label: str) -> Buffer:
        """New memory. Raises DeviceError if Metal gives none."""
        self._admit(size, label)
        buffer = self.metal.newBufferWithLength_options_(size, self._shared)
        if buffer is None:
            raise DeviceError(f"{self.name} gave no memory for a buffer of {size} bytes ({label}); {REMEDY}")
        self.tally.made["buffer"] += 1
        return Buffer(buffer, np.frombuffer(buffer.contents().as_buffer(size), np.uint8), label)

    def wrap(self, memory: Bytes, label: str) -> Buffer:
        """The host's own memory as a buffer, nothing copied: whole pages, which the buffer keeps alive."""
        self._admit(len(memory), label)
        if memory.ctypes.data % mmap.PAGESIZE or len(memory) % mmap.PAGESIZE:
            raise ValueError(f"{label} is not whole pages")
        make = self.metal.newBufferWithBytesNoCopy_length_options_deallocator_
        buffer = make(memory, len(memory), self._shared, None)
        if buffer is None:
            raise DeviceError(f"{self.name} cannot use {len(memory)} bytes of memory in place ({label}); {REMEDY}")
        self.tally.made["buffer"] += 1
        return Buffer(buffer, memory, label)

    def library(self, source: str, label: str) -> Library:
        """Compile a library. Raises UnsupportedError with the line of ours that the compiler refuses."""
        options = self._bindings.MTLCompileOptions.new()
        options.setFastMathEnabled_(False)  # infinities and what is not a number stay what they are
        library, error = self.metal.newLibraryWithSource_options_error_(source, options, None)
        if library is None:
            raise UnsupportedError(f"{self.name} refuses {label}: {_complaint(str(error.localizedDescription()))}")
        self.tally.made["library"] += 1
        return Library(self, library, label)

    def event(self) -> Event:
        """A new event, at 0."""
        self.tally.made["event"] += 1
        return Event(self.metal.newSharedEvent(), self.tally)

    def commands(self, label: str) -> Commands:
        """A new command buffer, which tells where it failed; to be used within `pool`."""
        descriptor = self._bindings.MTLCommandBufferDescriptor.new()
        descriptor.setErrorOptions_(self._bindings.MTLCommandBufferErrorOptionEncoderExecutionStatus)
        return Commands(self._bindings, self._queue.commandBufferWithDescriptor_(descriptor), label, self.tally)

    def pool(self) -> AbstractContextManager[object]:
        """What Metal hands out for a while is let go at the end of this context: one for each token."""
        pool: AbstractContextManager[object] = self._objc.autorelease_pool()
        return pool

    @property
    def _shared(self) -> Any:
        return self._bindings.MTLResourceStorageModeShared

    def _require(self) -> None:
        """SIMD-group reductions and matrices came with Apple's seventh family, the M1's."""
        if not (self.metal.supportsFamily_(self._bindings.MTLGPUFamilyApple7) and self.metal.hasUnifiedMemory()):
            raise UnsupportedError(
                f"{self.name} lacks SIMD-group matrices or unified memory, which Apple's GPUs have from the M1 and the"
                " A14 on; run with --backend cpu"
            )

    def _admit(self, size: int, label: str) -> None:
        if size > self.most_in_buffer:
            raise DeviceError(
                f"{label} needs {size} bytes in one buffer, and {self.name} allows {self.most_in_buffer};"
                " run with --backend cpu"
            )


def _bindings() -> tuple[Any, Any]:
    """PyObjC's modules Metal and objc."""
    try:
        import Metal
        import objc
    except ImportError as error:
        missing = "PyObjC: pip install 'moepack[metal]'" if sys.platform == "darwin" else "a Mac"
        raise UnsupportedError(f"the Metal backend needs {missing}; or run with --backend cpu") from error
    return Metal, objc


def _complaint(text: str) -> str:
    """The first error of a compiler's output, in one sentence with the line of source."""
    found = _COMPLAINT.search(text)
    if found is None:
        return text.strip().partition("\n")[0]
    line = source_line(found["file"], int(found["line"]))
    return f"{found['file']}:{found['line']}: {found['what']}" + (f" in `{line}`" if line else "")


def _failed_section(bindings: Any, error: Any, label: str) -> str:
    """The label of the section that failed, if Metal tells; else the command buffer's."""
    sections = (error.userInfo() or {}).get(bindings.MTLCommandBufferEncoderInfoErrorKey) or ()
    failed = [str(s.label()) for s in sections if s.errorState() == bindings.MTLCommandEncoderErrorStateFaulted]
    return f"{failed[0]} of {label}" if failed else label


def _sentence(error: Any) -> str:
    return str(error.localizedDescription()).strip().partition("\n")[0]
