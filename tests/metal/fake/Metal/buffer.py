"""Buffers, and `contents`: what PyObjC gives for a pointer to memory."""

import ctypes
import weakref

from .accounts import Allocation
from .bridge import Labelled, selector
from .constants import ENUMS
from .faults import need
from .memory import Region, Wrapped
from .order import Resource

PRIVATE = ENUMS["MTLStorageModePrivate"]


class VarList:
    """A pointer as PyObjC gives it: `as_buffer` says how much of what it points to is meant."""

    def __init__(self, buffer: "MTLBuffer") -> None:
        self._buffer = buffer

    def as_buffer(self, count: int) -> memoryview:
        """The first `count` bytes, writable."""
        whole = self._buffer._length
        need(count <= whole, f"{count} bytes of buffer {self._buffer._name}, which has {whole}")
        array = (ctypes.c_char * count).from_address(self._buffer._memory.host)
        array._memory = self._buffer._memory  # type: ignore[attr-defined]  # a view must not dangle here
        return memoryview(array).cast("B")


class MTLBuffer(Labelled):
    """Memory of the device's, or the host's own, wrapped."""

    def __init__(self, memory: Region | Wrapped, length: int, options: int, allocation: Allocation) -> None:
        super().__init__()
        self._memory, self._length = memory, length
        self._allocation, self._size = allocation, allocation.bytes
        self._storage, self._hazards = options >> 4 & 15, options >> 8 & 3
        tracked = self._hazards != ENUMS["MTLHazardTrackingModeUntracked"]
        self._resource = Resource(weakref.ref(memory), tracked)

    @selector("@")
    def setLabel_(self, label: str) -> None:
        super().setLabel_(label)
        self._resource.name = f"'{label}'"

    @selector(gives="Q")
    def length(self) -> int:
        return self._length

    @selector(gives="^v")
    def contents(self) -> VarList:
        need(self._storage != PRIVATE, f"buffer {self._name} is private: the host cannot see its contents")
        return VarList(self)

    @selector(gives="Q")
    def gpuAddress(self) -> int:
        return self._memory.gpu

    @selector(gives="Q")
    def allocatedSize(self) -> int:
        return self._size

    @selector(gives="Q")
    def storageMode(self) -> int:
        return self._storage

    @selector(gives="Q")
    def hazardTrackingMode(self) -> int:
        return self._hazards
