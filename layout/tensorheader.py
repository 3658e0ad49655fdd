"""The header of a safetensors file: parsed from untrusted JSON, checked completely, and rendered for writing.

What `parse` returns is consistent with a file of the stated size: every dtype known, every size its dtype times its
shape, all ranges adjacent from the first data byte to the end of the file. Nothing here touches a disk.
Format: 8 bytes, little-endian header length N; N bytes of JSON; then the tensors' bytes.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..manifests.errors import CorruptInputError
from ..manifests.members import members

LENGTH_BYTES = 8
# What is kept of a header stays within 64 MiB by these. (The safetensors library would take one of 100 MB.)
MAX_HEADER_BYTES = 20 * 1024 * 1024
MAX_TENSORS = 2**17
MAX_SHAPES = 4096  # different ones
MAX_NAME = 1024
MAX_NAMES_MEMORY = 24 * 1024 * 1024
MAX_RANK = 32
MAX_DIMENSION = 2**53
DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
METADATA = "__metadata__"
FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written: name, safetensors dtype tag ("BF16", "U32", ...) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor of a file: `size` bytes from `offset`, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class TensorHeader:
    """A checked header: the tensors in the order of their bytes, and the file's free-form metadata."""

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def parse(content: Iterable[bytes | memoryview], length: int, data_size: int, file: str) -> TensorHeader:
    """Check the header whose `length` bytes are `content`, in pieces, of a file that holds `data_size` bytes after it.

    Raises CorruptInputError that names `file`, the tensor and the fault.
    """
    reading = _Reading(LENGTH_BYTES + length, file)
    for _, name, info in members(content, f"the header of {file}"):
        reading.add(name, info)
    entries = sorted(reading.entries.values(), key=lambda entry: (entry.offset, entry.size))
    reading.entries.clear()
    _check_ranges(entries, LENGTH_BYTES + length, data_size, file)
    return TensorHeader({entry.name: entry for entry in entries}, reading.metadata)


def render(tensors: Iterable[TensorSpec]) -> bytes:
    """The length and JSON of a file that holds `tensors` one after the other; spaces align the data to 8 bytes."""
    fields: dict[str, Any] = {}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size
        fields[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _metadata(value: Any, file: str) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CorruptInputError(f"{file} has a header whose __metadata__ is not a table of texts")
    return value


class _Reading:
    """A header as far as it was read: checked entries, of which no more are kept than memory is meant for."""

    def __init__(self, start: int, file: str) -> None:
        self.entries: dict[str, TensorEntry] = {}
        self.metadata: Mapping[str, str] = {}
        self._start, self._file = start, file
        self._shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._names_memory = 0
        self._seen_metadata = False

    def add(self, name: str, info: Any) -> None:
        if name in self.entries or (name == METADATA and self._seen_metadata):
            raise CorruptInputError(f"the header of {self._file} is not acceptable: key {name!r:.100} appears twice")
        if name == METADATA:
            self._seen_metadata, self.metadata = True, _metadata(info, self._file)
            return
        self._check_room(name)
        self.entries[name] = _entry(name, info, self._start, self._file, self._known)

    def _check_room(self, name: str) -> None:
        self._names_memory += sys.getsizeof(name)
        if len(name) > MAX_NAME:
            raise CorruptInputError(f"{self._file} has a tensor whose name has more than {MAX_NAME} characters")
        if len(self.entries) == MAX_TENSORS or self._names_memory > MAX_NAMES_MEMORY:
            raise CorruptInputError(
                f"{self._file} describes more than {MAX_TENSORS} tensors, or by too long names;"
                " save the model in more files"
            )

    def _known(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(self._shapes) == MAX_SHAPES and shape not in self._shapes:
            raise CorruptInputError(f"{self._file} has tensors of more than {MAX_SHAPES} different shapes")
        return self._shapes.setdefault(shape, shape)


def _entry(
    name: str, info: Any, start: int, file: str, known: Callable[[tuple[int, ...]], tuple[int, ...]]
) -> TensorEntry:
    if not isinstance(info, dict) or info.keys() != FIELDS:
        raise CorruptInputError(
            f"{file} describes tensor {name!r:.100} by other fields than dtype, shape and data_offsets"
        )
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CorruptInputError(f"{file} gives tensor {name!r:.100} the unknown dtype {dtype!r:.40}")
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise CorruptInputError(f"{file} gives tensor {name!r:.100} a shape that is not a short list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptInputError(f"{file} gives tensor {name!r:.100} offsets that are not a range")
    entry = TensorEntry(name, sys.intern(dtype), known(tuple(shape)), start + offsets[0], offsets[1] - offsets[0])
    if entry.size * 8 != math.prod(shape) * DTYPE_BITS[dtype]:
        raise CorruptInputError(
            f"{file} gives tensor {name!r:.100} {entry.size} bytes, but {dtype} of {shape!r:.200} has another size"
        )
    return entry


def _are_sizes(values: Any) -> bool:
    # `type`, not `isinstance`: JSON's true is no size.
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= MAX_DIMENSION for value in values)


def _check_ranges(entries: list[TensorEntry], start: int, data_size: int, file: str) -> None:
    expected = start
    for entry in entries:
        if entry.offset != expected:
            fault = "overlaps the tensor before it" if entry.offset < expected else "leaves a hole before it"
            raise CorruptInputError(f"{file}: tensor {entry.name!r:.100} at byte {entry.offset} {fault}")
        expected += entry.size
    if expected > start + data_size:
        raise CorruptInputError(
            f"{file} is truncated: its header promises {expected} bytes, it has {start + data_size}; fetch it again"
        )
    if expected < start + data_size:
        raise CorruptInputError(f"{file} has {start + data_size} bytes, but its header accounts for only {expected}")
