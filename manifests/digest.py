"""Digests of buffers, of whole files and of expert records, computed at disk speed.

BLAKE3 is what a pack is made of; SHA-256 stands beside it for whole files, since that is what others list. The digest
of a record binds its place: the same bytes have another digest in another layer or as another expert (FORMAT.md, P3).
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from struct import Struct
from typing import NamedTuple

from blake3 import blake3

from .files import FilePlace, open_regular, pieces

DIGEST_BYTES = 32
RECORD_ROLE = b"moepack expert record"
RECORD_SUFFIX = Struct("<24sII")  # the role, padded with zeros, the layer and the expert
PARALLEL_BYTES = 256 * 1024  # below this, handing work to another thread costs more than hashing


Advance = Callable[[int], None]
Buffer = bytes | memoryview


class Digests(NamedTuple):
    """Both digests of one file, hexadecimal."""

    blake3: str
    sha256: str


def _unheard(size: int) -> None:
    pass


def of_bytes(data: Buffer) -> bytes:
    """The 32-byte digest of `data`."""
    return blake3(data).digest()


def both_of_bytes(data: Buffer) -> Digests:
    """Both digests of `data`."""
    return Digests(blake3(data).hexdigest(), sha256(data).hexdigest())


def of_record(record: Buffer, layer: int, expert: int) -> bytes:
    """The 32-byte digest that a whole record has as `expert` of `layer`."""
    hasher = RecordHasher()
    hasher.update(record)
    return hasher.digest(layer, expert)


class RecordHasher:
    """The same from pieces, and for as many places as one likes once the record is whole."""

    def __init__(self) -> None:
        self._hasher = blake3()

    def update(self, piece: Buffer) -> None:
        """Add the record's next bytes."""
        self._hasher.update(piece)

    def digest(self, layer: int, expert: int) -> bytes:
        """The 32-byte digest of the bytes so far as a record at this place."""
        placed = self._hasher.copy()
        placed.update(RECORD_SUFFIX.pack(RECORD_ROLE, layer, expert))
        return placed.digest()


class DoubleHasher:
    """Both digests of one stream of bytes; SHA-256, the slower, is computed on `pool` where that pays."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._blake3, self._sha256 = blake3(max_threads=blake3.AUTO), sha256()

    @contextmanager
    def updating(self, data: Buffer) -> Iterator[None]:
        """Add `data`, which must stay as it is until the block ends; the block runs beside the hashing."""
        if len(data) < PARALLEL_BYTES:
            self._update(data)
            yield
            return
        pending = self._pool.submit(self._sha256.update, data)
        try:
            self._blake3.update(data)
            yield
        finally:
            pending.result()

    def digests(self) -> Digests:
        """Both digests of the bytes so far."""
        return Digests(self._blake3.hexdigest(), self._sha256.hexdigest())

    def _update(self, data: Buffer) -> None:
        self._blake3.update(data)
        self._sha256.update(data)


def of_file(path: FilePlace, *, follow_links: bool = False, advance: Advance = _unheard) -> str:
    """The hexadecimal digest of a regular file; `advance` hears the size of every piece."""
    return of_sized_file(path, follow_links=follow_links, advance=advance)[1]


def of_sized_file(path: FilePlace, *, follow_links: bool = False, advance: Advance = _unheard) -> tuple[int, str]:
    """The size of a regular file, and the hexadecimal digest of that many bytes of it."""
    with opened(path, follow_links=follow_links) as descriptor:
        hasher = blake3(max_threads=blake3.AUTO)
        size = os.fstat(descriptor).st_size
        for piece in pieces(descriptor, 0, size, path):
            hasher.update(piece)
            advance(len(piece))
        return size, hasher.hexdigest()


def both_of_file(path: FilePlace, *, advance: Advance = _unheard) -> Digests:
    """Both digests of a regular file; `advance` hears the size of every piece."""
    with opened(path) as descriptor, ThreadPoolExecutor(1) as pool:
        hasher = DoubleHasher(pool)
        for piece in pieces(descriptor, 0, os.fstat(descriptor).st_size, path):
            with hasher.updating(piece):
                advance(len(piece))
        return hasher.digests()


@contextmanager
def opened(path: FilePlace, *, follow_links: bool = False) -> Iterator[int]:
    """A descriptor of the regular file `path` for the length of a block."""
    descriptor = open_regular(path, follow_links=follow_links)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
