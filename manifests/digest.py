"""BLAKE3 digests of buffers and of whole files, computed at disk speed."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from .files import open_regular, pieces

DIGEST_BYTES = 32


Advance = Callable[[int], None]


def _unheard(size: int) -> None:
    pass


def of_bytes(data: bytes | memoryview) -> bytes:
    """The 32-byte digest of `data`."""
    return blake3(data).digest()


def of_file(path: Path, *, follow_links: bool = False, advance: Advance = _unheard) -> str:
    """The hexadecimal digest of a regular file; `advance` hears the size of every piece."""
    return of_sized_file(path, follow_links=follow_links, advance=advance)[1]


def of_sized_file(path: Path, *, follow_links: bool = False, advance: Advance = _unheard) -> tuple[int, str]:
    """The size of a regular file, and the hexadecimal digest of that many bytes of it."""
    with opened(path, follow_links=follow_links) as descriptor:
        hasher = blake3(max_threads=blake3.AUTO)
        size = os.fstat(descriptor).st_size
        for piece in pieces(descriptor, 0, size, path):
            hasher.update(piece)
            advance(len(piece))
        return size, hasher.hexdigest()


@contextmanager
def opened(path: Path, *, follow_links: bool = False) -> Iterator[int]:
    """A descriptor of the regular file `path` for the length of a block."""
    descriptor = open_regular(path, follow_links=follow_links)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
