"""The memory of buffers: regions of our own, seen by host and GPU in mappings of their own, and wrapped host memory.

native/regions.cpp says how a host is caught that touches memory too early. Linux only, as the whole stand-in is.
"""

import ctypes
import hashlib
import mmap
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from metal.msl.compiler import find_compiler
from metal.msl.native import built

SOURCE = Path(__file__).parent / "native" / "regions.cpp"
ALIGNMENT = 256  # of a buffer's first byte, and so the most that a kernel may read beyond its end unseen


class Region:
    """`length` bytes at `host` and, the same bytes, at `gpu`; zero at first."""

    def __init__(self, length: int) -> None:
        body = _round_up(length, ALIGNMENT)
        whole = _round_up(body, mmap.PAGESIZE)
        self._native = _regions()
        self._id = self._native.region_new(whole)
        if self._id < 0:
            raise MemoryError(f"{length} bytes of memory for a buffer")
        self.host = self._native.region_host(self._id) + whole - body
        self.gpu = self._native.region_gpu(self._id) + whole - body
        weakref.finalize(self, self._native.region_free, self._id).atexit = False  # the GPU may still run then

    def close(self) -> None:
        """The GPU may write: the host has to keep off."""
        self._native.region_close(self._id)

    def open(self) -> None:
        self._native.region_open(self._id)

    def touched(self) -> bool:
        """Whether the host did not keep off, since this was last asked."""
        return bool(self._native.region_touched(self._id))

    def released(self) -> bool:
        return False


class Wrapped:
    """Host memory wrapped without copying. Nothing keeps it alive: the bridge does not either."""

    def __init__(self, owner: Any, length: int) -> None:
        self.host = self.gpu = address_of(owner)
        self._owner = _root(owner)

    def close(self) -> None:
        """Not to be had for memory of the host's own: the GPU uses the same mapping."""

    open = close

    def touched(self) -> bool:
        return False

    def released(self) -> bool:
        """Whether the memory is gone, as far as Python objects show."""
        owner = self._owner()
        return owner is None or (isinstance(owner, mmap.mmap) and owner.closed)


def address_of(memory: Any) -> int:
    """Where the bytes of an object are."""
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def _root(memory: Any) -> Any:
    """A reference to the object that `memory` is a view of: a weak one, unless Python has none for its kind."""
    root = memory
    while (below := root.obj if isinstance(root, memoryview) else getattr(root, "base", None)) is not None:
        root = below
    try:
        return weakref.ref(root)
    except TypeError:
        return lambda: root


def _round_up(count: int, to: int) -> int:
    return max(-(-count // to), 1) * to


@cache
def _regions() -> ctypes.CDLL:
    key = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:32]
    path = built(f"regions-{key}.so", lambda to: find_compiler().build_runtime([SOURCE], to))
    library = ctypes.CDLL(str(path))
    library.region_new.argtypes = [ctypes.c_size_t]
    library.region_host.restype = library.region_gpu.restype = ctypes.c_void_p
    return library
