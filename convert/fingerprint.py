"""A checkpoint's fingerprint: one digest that tells two checkpoints apart whose headers agree.

Cheap, because it reads samples: of every weight file evenly spaced blocks, and a little from the middle of many
tensors, so that no kind of tensor is trained anew unnoticed. Files of a few megabytes are read whole.
"""

import os
from collections.abc import Iterator, Sequence
from typing import TypeVar

from blake3 import blake3

from ..layout.tensorfile import TensorFile
from ..manifests.files import open_regular, read_exactly
from .checkpoint import Checkpoint

BLOCKS = 16
BLOCK_BYTES = 64 * 1024
TENSORS = 64  # of one file
TENSOR_BYTES = 4 * 1024
WHOLE_BYTES = 4 * BLOCKS * BLOCK_BYTES  # a file up to here is read whole

Item = TypeVar("Item")


def fingerprint(checkpoint: Checkpoint) -> str:
    """BLAKE3 over every weight file's name, size, header digest and samples, in the order of their names.

    The files are opened anew by name, so what has been saved over an opened checkpoint is seen. Raises
    CorruptInputError if a file has gone, StorageError if it cannot be read.
    """
    digest = blake3()
    for file in sorted(checkpoint.files, key=lambda file: file.path.name):
        _add(digest, file)
    return digest.hexdigest()


def _add(digest: blake3, file: TensorFile) -> None:
    descriptor = open_regular(file.path, follow_links=True)
    try:
        size = os.fstat(descriptor).st_size
        digest.update(f"{file.path.name}\n{size}\n{file.header_blake3}\n".encode())
        if size == file.size:  # otherwise the size already tells
            for offset, length in _samples(file):
                sample = bytearray(length)
                read_exactly(descriptor, memoryview(sample), offset, file.path)
                digest.update(sample)
    finally:
        os.close(descriptor)


def _samples(file: TensorFile) -> Iterator[tuple[int, int]]:
    """(offset, size) of what is read of a file."""
    if file.size <= WHOLE_BYTES:
        yield 0, file.size
        return
    for block in range(BLOCKS):
        yield block * (file.size - BLOCK_BYTES) // (BLOCKS - 1), BLOCK_BYTES
    entries = sorted(file.entries.values(), key=lambda entry: entry.offset)
    for entry in _evenly(entries, TENSORS):
        length = min(entry.size, TENSOR_BYTES)
        yield entry.offset + (entry.size - length) // 2, length


def _evenly(items: Sequence[Item], most: int) -> Sequence[Item]:
    """At most `most` of `items`, evenly spaced."""
    return items if len(items) <= most else [items[index * len(items) // most] for index in range(most)]
