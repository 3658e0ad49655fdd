"""The header of a safetensors file: parsed from untrusted JSON, checked completely, and rendered for writing.

What `parse` returns is consistent with a file of the stated size: every dtype known, every size its dtype times its
shape, all ranges adjacent from the first data byte to the end of the file. Nothing here touches a disk.
Format: 8 bytes, little-endian header length N; N bytes of JSON; then the tensors' bytes.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..manifests import canonical
from ..manifests.errors import CorruptInputError

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
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


@dataclass(frozen=True)
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


def parse(text: bytes, data_size: int, file: str) -> TensorHeader:
    """Check the JSON `text` of a file that holds `data_size` bytes after it.

    Raises CorruptInputError that names `file`, the tensor and the fault.
    """
    if not text.startswith(b"{"):
        raise CorruptInputError(f"{file} is not a safetensors file: its header does not begin with '{{'")
    fields = canonical.decode(text, f"the header of {file}")
    metadata = _metadata(fields.pop("__metadata__", {}), file)
    start = LENGTH_BYTES + len(text)
    found = [_entry(name, info, start, file) for name, info in fields.items()]
    entries = sorted(found, key=lambda entry: (entry.offset, entry.size))
    _check_ranges(entries, start, data_size, file)
    return TensorHeader({entry.name: entry for entry in entries}, metadata)


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


def _entry(name: str, info: Any, start: int, file: str) -> TensorEntry:
    if not isinstance(info, dict) or info.keys() != FIELDS:
        raise CorruptInputError(f"{file} describes tensor {name!r} by other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CorruptInputError(f"{file} gives tensor {name!r} the unknown dtype {dtype!r:.40}")
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise CorruptInputError(f"{file} gives tensor {name!r} a shape that is not a short list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptInputError(f"{file} gives tensor {name!r} offsets that are not a range")
    entry = TensorEntry(name, dtype, tuple(shape), start + offsets[0], offsets[1] - offsets[0])
    if entry.size * 8 != math.prod(shape) * DTYPE_BITS[dtype]:
        raise CorruptInputError(
            f"{file} gives tensor {name!r} {entry.size} bytes, but {dtype} of {shape} has another size"
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
            raise CorruptInputError(f"{file}: tensor {entry.name!r} at byte {entry.offset} {fault}")
        expected += entry.size
    if expected > start + data_size:
        raise CorruptInputError(
            f"{file} is truncated: its header promises {expected} bytes, it has {start + data_size}; fetch it again"
        )
    if expected < start + data_size:
        raise CorruptInputError(f"{file} has {start + data_size} bytes, but its header accounts for only {expected}")
