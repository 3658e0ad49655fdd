"""safetensors files on disk: `pread` of exactly a tensor or a row of it, and streamed writing in a planned order.

Our own reader, because one expert of a fused tensor must be readable without touching the rest of its shard, from
many threads, into a buffer that the caller owns. The safetensors library is the tests' oracle.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from blake3 import blake3

from ..manifests.errors import CorruptInputError, UnsupportedError
from ..manifests.files import FilePlace, open_regular, pieces, read_bytes, read_exactly
from ..manifests.members import PIECE_BYTES
from .tensorheader import LENGTH_BYTES, MAX_HEADER_BYTES, TensorEntry, TensorHeader, TensorSpec, parse, render

__all__ = ["ARRAY_DTYPES", "TRUNK_DTYPES", "TensorEntry", "TensorFile", "TensorFileWriter", "TensorSpec"]

Array = np.ndarray[Any, np.dtype[Any]]
TRUNK_DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"U{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"I{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
# What a checkpoint may hold besides. F8_E5M2 and the other dtypes that a header may name are sized, never read.
ARRAY_DTYPES: Mapping[str, np.dtype[Any]] = {**TRUNK_DTYPES, "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn)}


class TensorFile:
    """An opened safetensors file whose header has been checked against its size. Thread-safe; a context manager.

    `header_blake3` is the digest of every byte before the first tensor, the length included.
    """

    def __init__(self, path: FilePlace, descriptor: int, header: TensorHeader, header_blake3: str) -> None:
        self.path = path if isinstance(path, Path) else path.path
        self.size = os.fstat(descriptor).st_size
        self.entries = header.entries
        self.metadata = header.metadata
        self.header_blake3 = header_blake3
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: FilePlace) -> "TensorFile":
        """Open `path` (links are followed, unless it is a pack's) and check its header; no tensor is read.

        Raises CorruptInputError for anything malformed or truncated, StorageError if the system refuses.
        """
        descriptor = open_regular(path, follow_links=isinstance(path, Path))
        try:
            return cls(path, descriptor, *_read_header(descriptor, path))
        except BaseException:
            os.close(descriptor)
            raise

    def prefix(self) -> bytes:
        """Every byte before the first tensor, the length included."""
        start = min((entry.offset for entry in self.entries.values()), default=self.size)
        return read_bytes(self._descriptor, start, self.path)

    def read(self, name: str) -> Array:
        """The whole tensor `name`, in its own dtype and shape, freshly allocated."""
        entry = self._entry(name)
        out = np.empty(entry.shape, _array_dtype(entry, self.path))
        self.read_into(name, out)
        return out

    def read_row(self, name: str, first: int) -> Array:
        """`tensor[first]` along axis 0, freshly allocated; nothing else of the tensor is read."""
        entry = self._entry(name)
        out = np.empty(entry.shape[1:], _array_dtype(entry, self.path))
        self.read_into(name, out, first)
        return out

    def read_into(self, name: str, out: Array, first: int | None = None, *, keep_cached: bool = True) -> None:
        """Fill the C-contiguous `out` with the whole tensor, or with as many rows from `first` on as `out` holds.

        Without `keep_cached` the system is asked to forget these bytes of the file, where it can be asked.
        Raises ValueError if `out` does not fit the tensor, StorageError if the device fails or the file shrank.
        """
        entry = self._entry(name)
        view = byte_view(out)
        offset = entry.offset if first is None else entry.offset + _row_offset(entry, first, len(view))
        if first is None and len(view) != entry.size:
            raise ValueError(f"{name} has {entry.size} bytes, the buffer {len(view)}")
        read_exactly(self._descriptor, view, offset, self.path)
        if not keep_cached and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, len(view), os.POSIX_FADV_DONTNEED)

    def read_columns_into(self, name: str, out: Array, first: int) -> None:
        """Fill the C-contiguous `out` [rows, n] with `tensor[:, first : first + n]`: one `pread` of each row.

        Raises ValueError if `out` does not fit the tensor, StorageError if the device fails or the file shrank.
        """
        entry, dtype = self._entry(name), out.dtype
        rows, cols = out.shape
        fits = len(entry.shape) == 2 and entry.shape[0] == rows and 0 <= first <= entry.shape[1] - cols
        if not fits or entry.size != rows * entry.shape[1] * dtype.itemsize:
            raise ValueError(f"{name} {entry.shape} has no columns from {first} on that fill {dtype}{out.shape}")
        if cols == entry.shape[1]:
            return self.read_into(name, out)
        for row, piece in enumerate(out):
            offset = entry.offset + (row * entry.shape[1] + first) * dtype.itemsize
            read_exactly(self._descriptor, byte_view(piece), offset, self.path)

    def blake3_of(self, name: str) -> str:
        """The hexadecimal digest of a tensor's bytes, however large it is."""
        entry, hasher = self._entry(name), blake3(max_threads=blake3.AUTO)
        for piece in pieces(self._descriptor, entry.offset, entry.size, self.path):
            hasher.update(piece)
        return hasher.hexdigest()

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _entry(self, name: str) -> TensorEntry:
        if name not in self.entries:
            raise CorruptInputError(f"{self.path} has no tensor {name!r}")
        return self.entries[name]


class Sink(Protocol):
    """Where a TensorFileWriter's bytes go."""

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""


class Digested:
    """Passes what is written on to another sink, and digests it."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self._hasher = sink, blake3()

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        self._hasher.update(data)
        self._sink.write(data)

    def hexdigest(self) -> str:
        """Of all that was written so far."""
        return self._hasher.hexdigest()


class TensorFileWriter:
    """Streams tensors into a safetensors file whose header is known beforehand; every tensor once, in order."""

    def __init__(self, sink: Sink, tensors: Sequence[TensorSpec]) -> None:
        self._sink = sink
        self._left: Iterator[TensorSpec] = iter(tensors)
        sink.write(render(tensors))

    def write_blocks(self, name: str, blocks: Iterable[Array]) -> None:
        """Append the next planned tensor as blocks of whole rows, top to bottom: no tensor need fit in memory.

        A scalar is one row. Raises ValueError if `name` is not the next tensor's, if a block's dtype or row shape is
        not the plan's, or if the blocks do not add up to the tensor.
        """
        spec = self._next(name)
        shape, rows = spec.shape or (1,), 0
        for block in map(np.atleast_1d, blocks):
            rows += len(block)
            if block.shape[1:] != shape[1:] or block.dtype != ARRAY_DTYPES.get(spec.dtype) or rows > shape[0]:
                raise ValueError(f"a block {block.dtype}{block.shape} of {name} does not fit {spec.dtype}{spec.shape}")
            self._sink.write(byte_view(np.ascontiguousarray(block)))
        if rows != shape[0]:
            raise ValueError(f"{name} came in {rows} rows, planned were {shape[0]}")

    def finish(self) -> None:
        """Raise ValueError if a planned tensor has not been written."""
        spec = next(self._left, None)
        if spec is not None:
            raise ValueError(f"{spec.name} was planned but never written")

    def _next(self, name: str) -> TensorSpec:
        spec = next(self._left, None)
        if spec is None or spec.name != name:
            raise ValueError(f"{name} was written where the plan has {spec.name if spec else 'nothing'}")
        return spec


def byte_view(array: Array) -> memoryview:
    """The bytes of a C-contiguous array, without a copy. Raises ValueError for any other array."""
    if not array.flags.c_contiguous:
        raise ValueError("the array is not contiguous")
    return array.reshape(-1).view(np.uint8).data


def _read_header(descriptor: int, path: FilePlace) -> tuple[TensorHeader, str]:
    """The checked header, and the digest of it and of its length."""
    size = os.fstat(descriptor).st_size
    length = _header_length(descriptor, size, path)
    hasher = blake3()
    for piece in pieces(descriptor, 0, LENGTH_BYTES + length, path):
        hasher.update(piece)
    if length == 0 or os.pread(descriptor, 1, LENGTH_BYTES) != b"{":
        raise CorruptInputError(f"{path} is not a safetensors file: its header does not begin with '{{'")
    content = pieces(descriptor, LENGTH_BYTES, length, path, PIECE_BYTES)
    return parse(content, length, size - LENGTH_BYTES - length, str(path)), hasher.hexdigest()


def _header_length(descriptor: int, size: int, path: FilePlace) -> int:
    if size < LENGTH_BYTES:
        raise CorruptInputError(f"{path} is not a safetensors file: it has only {size} bytes")
    head = bytearray(LENGTH_BYTES)
    read_exactly(descriptor, memoryview(head), 0, path)
    length = int.from_bytes(head, "little")
    if length > MAX_HEADER_BYTES or length > size - LENGTH_BYTES:
        raise CorruptInputError(
            f"{path} announces a header of {length} bytes, but the file has {size} bytes"
            f" and headers at most {MAX_HEADER_BYTES}; fetch it again, or save the model in more files"
        )
    return length


def _array_dtype(entry: TensorEntry, path: Path) -> np.dtype[Any]:
    dtype = ARRAY_DTYPES.get(entry.dtype)
    if dtype is None:
        raise UnsupportedError(
            f"{path}: tensor {entry.name!r} is {entry.dtype}; readable are {', '.join(ARRAY_DTYPES)}"
        )
    return dtype


def _row_offset(entry: TensorEntry, first: int, size: int) -> int:
    rows = entry.shape[0] if entry.shape else 0
    row_size = entry.size // rows if rows else 0
    fits = 0 <= first < rows and row_size and size % row_size == 0 and first * row_size + size <= entry.size
    if not fits:
        raise ValueError(f"{entry.name} {entry.shape} has no rows from {first} on that fill {size} bytes")
    return first * row_size
