"""Encoders: they check what Metal's validation layer checks, and append commands to a pass."""

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from metal import limits

from .accounts import account
from .bridge import Labelled, selector
from .constants import ENUMS
from .event import MTLFence
from .faults import MetalAssertion, need, reports
from .library import MTLComputePipelineState, exact_grid, whole_grid
from .order import Resource
from .work import Bound, Command, Copy, Dispatch, Fill, Pass

if TYPE_CHECKING:
    from .buffer import MTLBuffer
    from .command_buffer import MTLCommandBuffer


class _Encoder(Labelled):
    """What encoders have in common."""

    def __init__(self, command_buffer: "MTLCommandBuffer", work: Pass, dispatch_type: int) -> None:
        super().__init__()
        self._command_buffer, self._pass = command_buffer, work
        self._concurrent = dispatch_type == ENUMS["MTLDispatchTypeConcurrent"]

    @selector("@")
    def setLabel_(self, label: str | None) -> None:
        super().setLabel_(label)
        self._pass.label = label

    @selector("@")
    def waitForFence_(self, fence: MTLFence) -> None:
        self._open()
        self._pass.waits_for.append(fence)

    @selector("@")
    def updateFence_(self, fence: MTLFence) -> None:
        self._open()
        self._pass.updates.append(fence)

    @selector()
    def endEncoding(self) -> None:
        self._open()
        account.count("passes")
        self._command_buffer._encoder = None

    def _release(self) -> None:
        """Its pool has ended: Metal ends the process where an encoder goes away that was not told to end."""
        if self._command_buffer._encoder is self:
            reports.add("encoding", f"encoder {self._name} was released without endEncoding")

    def _open(self) -> None:
        need(self._command_buffer._encoder is self, f"encoder {self._name} has ended")

    def _bound(self, buffer: "MTLBuffer", offset: int) -> Bound:
        need(offset < buffer._length, f"offset {offset} is beyond buffer {buffer._name}, of {buffer._length} bytes")
        held: Callable[[], Any] = (lambda: buffer) if self._command_buffer._retains else weakref.ref(buffer)
        return Bound(buffer._memory.gpu + offset, buffer._length - offset, held, buffer._resource)


class MTLComputeCommandEncoder(_Encoder):
    """Launches of kernels. Arguments stay bound from one launch to the next."""

    def __init__(self, command_buffer: "MTLCommandBuffer", work: Pass, dispatch_type: int) -> None:
        super().__init__(command_buffer, work, dispatch_type)
        self._pipeline: MTLComputePipelineState | None = None
        self._arguments: dict[int, Bound] = {}
        self._lengths: dict[int, int] = {}
        self._read: set[Resource] = set()  # since the last barrier
        self._written: set[Resource] = set()

    @selector("@")
    def setComputePipelineState_(self, pipeline: MTLComputePipelineState) -> None:
        self._open()
        need(isinstance(pipeline, MTLComputePipelineState), f"{pipeline!r} is not a pipeline")
        self._pipeline = pipeline

    @selector("@QQ")
    def setBuffer_offset_atIndex_(self, buffer: "MTLBuffer | None", offset: int, index: int) -> None:
        self._index(index)
        if buffer is None:
            self._arguments.pop(index, None)
        else:
            self._arguments[index] = self._bound(buffer, offset)

    @selector("QQ")
    def setBufferOffset_atIndex_(self, offset: int, index: int) -> None:
        self._index(index)
        bound = self._arguments.get(index)
        buffer = None if bound is None or bound.resource is None else bound.held()
        need(buffer is not None, f"no buffer is bound at {index} whose offset could be set")
        self._arguments[index] = self._bound(buffer, offset)

    @selector("nQQ")
    def setBytes_length_atIndex_(self, data: Any, length: int, index: int) -> None:
        self._index(index)
        need(0 < length <= limits.MAX_BYTES, f"setBytes takes 1 to {limits.MAX_BYTES} bytes, not {length}")
        copy = np.zeros(length + limits.THREADGROUP_GRANULE, np.uint8)
        start = -copy.ctypes.data % limits.THREADGROUP_GRANULE
        copy[start : start + length] = np.frombuffer(data, np.uint8, length)
        self._arguments[index] = Bound(copy.ctypes.data + start, length, lambda: copy)

    @selector("QQ")
    def setThreadgroupMemoryLength_atIndex_(self, length: int, index: int) -> None:
        self._index(index)
        granule = limits.THREADGROUP_GRANULE
        need(
            length % granule == 0, f"the length of threadgroup memory {index} is {length}, not a multiple of {granule}"
        )
        self._lengths[index] = length

    @selector("SS")
    def dispatchThreadgroups_threadsPerThreadgroup_(self, groups: Sequence[int], threads: Sequence[int]) -> None:
        self._dispatch(whole_grid, groups, threads)

    @selector("SS")
    def dispatchThreads_threadsPerThreadgroup_(self, threads: Sequence[int], group: Sequence[int]) -> None:
        self._dispatch(exact_grid, threads, group)

    @selector("Q")
    def memoryBarrierWithScope_(self, scope: int) -> None:
        self._open()
        need(scope & ENUMS["MTLBarrierScopeBuffers"], f"a barrier of scope {scope} is not one of buffers")
        self._barrier(self._read | self._written)

    @selector("pQ")
    def memoryBarrierWithResources_count_(self, buffers: Sequence["MTLBuffer"], count: int) -> None:
        self._open()
        self._barrier({buffer._resource for buffer in buffers[:count]})

    def _barrier(self, resources: set[Resource]) -> None:
        account.count("barriers")
        self._read -= resources
        self._written -= resources
        self._pass.groups.append([])

    def _index(self, index: int) -> None:
        self._open()
        need(index < limits.MAX_BUFFERS, f"index {index} is not below {limits.MAX_BUFFERS}")

    def _dispatch(self, grid: Callable[..., Any], count: Sequence[int], group: Sequence[int]) -> None:
        self._open()
        pipeline = self._pipeline
        if pipeline is None:
            raise MetalAssertion(f"a dispatch of encoder {self._name} has no pipeline")
        pipeline._check_sizes(count, group)
        pipeline._check_arguments(self._arguments, self._lengths)
        used = {a.index: self._arguments[a.index] for a in pipeline._buffers}
        lengths = {a.index: self._lengths[a.index] for a in pipeline._threadgroup}
        self._add(Dispatch(pipeline, grid(tuple(count), tuple(group)), used, lengths))
        account.count("dispatches")

    def _add(self, command: Command) -> None:
        if self._concurrent:
            self._check_concurrent(command)
        else:
            self._pass.groups.append([])
        self._pass.add(command)

    def _check_concurrent(self, command: Command) -> None:
        clash = (command.writes & (self._read | self._written)) | (command.reads & self._written)
        names = ", ".join(sorted(resource.name for resource in clash))
        sentence = f"{command.name} and a command before it use buffer {names}, at least one writes it"
        need(not clash, f"{sentence}, and no barrier separates them in the concurrent encoder {self._name}")
        self._read |= command.reads
        self._written |= command.writes


class MTLBlitCommandEncoder(_Encoder):
    """Copies and fills."""

    @selector("@Q@QQ")
    def copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size_(
        self, source: "MTLBuffer", source_offset: int, target: "MTLBuffer", target_offset: int, size: int
    ) -> None:
        self._open()
        self._pass.groups.append([])
        self._pass.add(Copy(self._span(source, source_offset, size), self._span(target, target_offset, size), size))

    @selector("@Rz")
    def fillBuffer_range_value_(self, buffer: "MTLBuffer", span: tuple[int, int], value: int) -> None:
        self._open()
        self._pass.groups.append([])
        self._pass.add(Fill(self._span(buffer, span[0], span[1]), span[1], value))

    def _span(self, buffer: "MTLBuffer", offset: int, size: int) -> Bound:
        bound = self._bound(buffer, offset)
        need(0 < size <= bound.length, f"{size} bytes from {offset} are not within buffer {buffer._name}")
        return bound
