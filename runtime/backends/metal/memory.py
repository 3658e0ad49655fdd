"""Memory that host and GPU share: large pieces that are wrapped in place, and regions of buffers that are lent.

Everything is made once and kept: an address of the host's is looked up to say in which buffer it lies, and what a
token needs for a while is a region of one workspace, lent and given back by reference count. A region may be lent
again while the GPU still reads it: kernels run in the order in which they are encoded. Knows no kernel.
"""

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Sequence
from operator import itemgetter

import numpy as np

from ....manifests.errors import DeviceError
from ... import arena
from ..base import Record
from .device import Argument, Buffer, Bytes, Device

PAGE = 16 * 1024  # of Apple's GPUs; what is wrapped consists of whole ones
LINE = 256  # a region begins on a multiple of this: wide enough for any element, and for the GPU's cache lines
SHELF = 1024 * 1024  # small weights are copied into buffers of this size
SHELVED = SHELF // 16  # those of up to so many bytes
LABEL = "small weights"


def page_limit(device: Device) -> int:
    """Bytes of the largest buffer that consists of whole pages."""
    return device.most_in_buffer // PAGE * PAGE


class SharedMemory:
    """Pieces of host memory that the GPU reads in place; see backends.base.Memory."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pieces: list[tuple[int, Buffer]] = []  # by address

    @property
    def most(self) -> int:
        """Bytes of the largest piece: what the device allows in one buffer."""
        return page_limit(self._device)

    @property
    def pieces(self) -> list[Buffer]:
        """All of them, by address."""
        return [buffer for _, buffer in self._pieces]

    def reserve(self, size: int) -> Record:
        """See Memory. Raises DeviceError if the device cannot use as much in one buffer."""
        memory = arena.reserve(-(-max(size, 1) // PAGE) * PAGE)
        buffer = self._device.wrap(memory, f"memory of {size} bytes")
        insort(self._pieces, (memory.ctypes.data, buffer), key=itemgetter(0))
        return memory[:size]

    def place(self, array: Bytes) -> tuple[Buffer, int]:
        """The buffer and the offset where an array lies. Raises ValueError if it lies in no piece."""
        index, offset = self.locate(array)
        return self._pieces[index][1], offset

    def locate(self, array: Bytes) -> tuple[int, int]:
        """The same, the buffer by its index in `pieces`."""
        address = array.ctypes.data
        index = bisect_right(self._pieces, address, key=itemgetter(0)) - 1
        if index >= 0:
            start, buffer = self._pieces[index]
            if address + array.nbytes <= start + len(buffer):
                return index, address - start
        raise ValueError(f"{array.nbytes} bytes at {address:#x} lie in no memory of the device's")


class Region:
    """Part of a buffer, for as long as anybody refers to it."""

    __slots__ = ("_give_back", "buffer", "offset", "size")

    def __init__(self, buffer: Buffer, offset: int, size: int, give_back: "Callable[[Region], None] | None") -> None:
        self.buffer = buffer
        self.offset = offset
        self.size = size
        self._give_back = give_back

    def __del__(self) -> None:
        if self._give_back is not None:
            self._give_back(self)


class Tensor:
    """float32 activations [rows, width] in a region, from float `first` on; a slice of its rows keeps it alive."""

    __slots__ = ("_first", "region", "rows", "width")

    def __init__(self, region: Region, rows: int, width: int, first: int = 0) -> None:
        self.region = region
        self.rows = rows
        self.width = width
        self._first = first

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, rows: slice) -> "Tensor":
        first, last, _ = rows.indices(self.rows)
        return Tensor(self.region, max(0, last - first), self.width, self._first + first * self.width)

    @property
    def argument(self) -> Argument:
        """Where a kernel finds it."""
        return self.region.buffer, self.region.offset + 4 * self._first

    @property
    def values(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """The host's view [rows, width], once the GPU is done."""
        start = self.region.offset + 4 * self._first
        return (
            self.region.buffer.bytes[start : start + 4 * self.rows * self.width]
            .view(np.float32)
            .reshape(self.rows, self.width)
        )


class Workspace:
    """Regions of one buffer, lent where they first fit. `peak`: the end of the farthest one that ever was."""

    def __init__(self, device: Device, size: int) -> None:
        self._buffer = device.buffer(-(-size // LINE) * LINE, "activations")
        self._free = [(0, len(self._buffer))]  # (offset, size), ascending, never side by side
        self._returned: deque[Region] = deque()
        self.peak = 0

    def region(self, size: int) -> Region:
        """A region of unspecified contents. Raises DeviceError where nothing is left of what was planned."""
        self._take_in()
        wanted = -(-max(size, 1) // LINE) * LINE
        for index, (offset, free) in enumerate(self._free):
            if free >= wanted:
                left = [(offset + wanted, free - wanted)] if free > wanted else []
                self._free[index : index + 1] = left
                self.peak = max(self.peak, offset + wanted)
                return Region(self._buffer, offset, wanted, self._take_back)
        raise DeviceError(
            f"{len(self._buffer)} bytes were planned for activations, and {wanted} more are needed; ask for smaller"
            " chunks (--chunk)"
        )

    @property
    def free(self) -> int:
        """Bytes that are not lent."""
        self._take_in()
        return sum(size for _, size in self._free)

    def _take_in(self) -> None:
        while self._returned:
            self._join(self._returned.popleft())

    def _take_back(self, region: Region) -> None:
        """Whoever's garbage it was: any thread may find it, at any moment, so that nothing but this is done with it."""
        self._returned.append(Region(region.buffer, region.offset, region.size, None))

    def _join(self, region: Region) -> None:
        """It joins the free ones beside it."""
        index = bisect_right(self._free, (region.offset, 0))
        offset, end = region.offset, region.offset + region.size
        last = index
        if index < len(self._free) and self._free[index][0] == end:
            end += self._free[index][1]
            last += 1
        if index and sum(self._free[index - 1]) == offset:
            index -= 1
            offset = self._free[index][0]
        self._free[index:last] = [(offset, end - offset)]


class Spares:
    """Regions that outlive a token, each a buffer of its own. What is given back is lent again, never freed.

    PyObjC may keep a buffer for ever (see device), and sessions come and go.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._idle: dict[int, list[Region]] = {}

    def region(self, size: int, label: str) -> Region:
        """A region of unspecified contents."""
        wanted = -(-max(size, 1) // LINE) * LINE
        idle = self._idle.get(wanted)
        buffer = idle.pop().buffer if idle else self._device.buffer(wanted, label)
        return Region(buffer, 0, wanted, self._take_back)

    def _take_back(self, region: Region) -> None:
        self._idle.setdefault(region.size, []).append(Region(region.buffer, 0, region.size, None))


class Shelf:
    """Small weights that stay, copied into buffers one after the other; what is not so small has one of its own."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffer: Buffer | None = None
        self._end = 0

    def put(self, content: Bytes) -> Region:
        """A region with these bytes."""
        size = -(-max(len(content), 1) // LINE) * LINE
        region = self._shelved(size) if size <= SHELVED else Region(self._device.buffer(size, LABEL), 0, size, None)
        region.buffer.bytes[region.offset : region.offset + len(content)] = content
        return region

    def _shelved(self, size: int) -> Region:
        if self._buffer is None or self._end + size > len(self._buffer):
            self._buffer, self._end = self._device.buffer(SHELF, LABEL), 0
        region = Region(self._buffer, self._end, size, None)
        self._end += size
        return region


def shelf_bytes(sizes: Sequence[int]) -> int:
    """The most that a shelf takes for contents of these sizes, in whatever order they come."""
    whole = [-(-max(size, 1) // LINE) * LINE for size in sizes]
    shelved = sum(size for size in whole if size <= SHELVED)
    buffers = -(-shelved // (SHELF - SHELVED))  # each but the last is left with less than SHELVED
    return sum(size for size in whole if size > SHELVED) + SHELF * buffers
