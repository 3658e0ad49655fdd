"""The calibration file: a header, compressed sections, and a digest of all that is before it.

    8 bytes "MOECAL" and a line break of two, 8 bytes the header's length, the header (canonical JSON), the sections
    (zstd, one frame each) in the header's order without gaps, 32 bytes the BLAKE3 digest of everything before them

That last digest names the file. Nothing of it is believed before the digest was computed again, nothing is
decompressed before its size is known to be the one that the model's shapes give.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate, chain
from pathlib import Path

import zstandard
from blake3 import blake3

from ...layout.atomic import AtomicFile
from ...manifests import digest
from ...manifests.errors import CorruptInputError, MismatchError, StorageError
from ...manifests.files import open_regular, pieces, read_exactly, require_there
from ..sensitivities import Sensitivities
from . import header as headers
from .header import Facts, Section
from .sections import Arrays, decode, expert_section, layer_section
from .statistics import LayerStatistics

MAGIC = b"MOECAL\r\n"
PREFIX = struct.Struct("<8sQ")
LEVEL = 3


def compress(content: bytes) -> bytes:
    """A section as it is stored."""
    return zstandard.ZstdCompressor(level=LEVEL).compress(content)


class CalibrationFile:
    """An opened calibration file; a context manager. Reads are thread-safe.

    `digest` names it; `sensitivities` are None if they were not measured. Memory: a section at a time.
    """

    def __init__(
        self, path: Path, descriptor: int, header: headers.Header, places: dict[str, tuple[int, Section]]
    ) -> None:
        self.path = path
        self.facts: Facts = header.facts
        self.sensitivities: Sensitivities | None = header.sensitivities or None
        self.digest = ""
        self._descriptor = descriptor
        self._places = places
        self._fields = self.facts.shape.all_sections()

    @classmethod
    def open(cls, path: Path) -> "CalibrationFile":
        """Open and check a file, all of which is read.

        Raises UsageError if nothing is there, CorruptInputError if it is no calibration file, MismatchError if it was
        altered or cut, UnsupportedError for another version.
        """
        require_there(path)
        descriptor = open_regular(path, follow_links=True)
        try:
            size = os.fstat(descriptor).st_size
            found = _checked_digest(descriptor, size, path)
            header, start = _read_header(descriptor, size, path)
            starts = accumulate((section.stored for section in header.sections), initial=start)
            *begins, end = starts
            if end + digest.DIGEST_BYTES != size:
                raise CorruptInputError(f"{path} has {size} bytes, not the {end + digest.DIGEST_BYTES} of its header")
            places = {section.name: (begin, section) for begin, section in zip(begins, header.sections, strict=True)}
            opened = cls(path, descriptor, header, places)
            opened.digest = found
            return opened
        except BaseException:
            os.close(descriptor)
            raise

    def layer(self, layer: int) -> LayerStatistics:
        """The statistics of a layer. Raises like `read`, and CorruptInputError if its numbers contradict each other."""
        name = layer_section(layer)
        arrays = self.read(name)
        per_token = self.facts.model.experts_per_token
        if arrays["visits"].sum(axis=1).tolist() != [per_token * tokens for tokens in self.facts.halves]:
            raise CorruptInputError(f"{self.path}: {name} does not count {per_token} experts for every token")
        return LayerStatistics(self.facts.halves, arrays, partial(self.expert, layer))

    def expert(self, layer: int, expert: int) -> Arrays:
        """What was kept of an expert alone; nothing, perhaps. Raises like `read`."""
        return self.read(expert_section(layer, expert)) if self.facts.shape.own else {}

    def read(self, name: str) -> Arrays:
        """The arrays of a section. Raises MismatchError if its bytes have changed since the file was opened."""
        offset, section = self._places[name]
        stored = bytearray(section.stored)
        read_exactly(self._descriptor, memoryview(stored), offset, self.path)
        if digest.of_bytes(bytes(stored)).hex() != section.blake3:
            raise MismatchError(f"{self.path}: section {name!r} is damaged; calibrate again")
        content = self._decompressed(bytes(stored), section)
        return decode(self._fields[name], content, f"{self.path}: section {name!r}")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> "CalibrationFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decompressed(self, stored: bytes, section: Section) -> bytes:
        try:
            if zstandard.frame_content_size(stored) == section.size:
                return zstandard.ZstdDecompressor().decompress(stored)
        except zstandard.ZstdError:
            pass
        except MemoryError as error:
            what = f"{self.path}: section {section.name!r} takes {section.size} bytes of memory"
            raise StorageError(f"{what}, more than there is; free some, or use a larger machine") from error
        raise CorruptInputError(f"{self.path}: section {section.name!r} does not hold {section.size} bytes")


def write(
    target: Path,
    facts: Facts,
    sections: Sequence[Section],
    content: Iterator[memoryview],
    sensitivities: Sensitivities | None = None,
) -> str:
    """Write a file from its stored sections, in order, as pieces of any size; the digest that names it.

    A piece is written before the next is asked for. Raises StorageError if the disk fails or fills.
    """
    rendered = headers.render(facts, list(sections), sensitivities)
    size = PREFIX.size + len(rendered) + sum(section.stored for section in sections) + digest.DIGEST_BYTES
    hasher = blake3(max_threads=blake3.AUTO)
    with AtomicFile(target, size) as file:
        head: tuple[bytes | memoryview, ...] = PREFIX.pack(MAGIC, len(rendered)), rendered
        for piece in chain(head, content):
            hasher.update(piece)
            file.write(piece)
        file.write(hasher.digest())
    return hasher.hexdigest()


def _checked_digest(descriptor: int, size: int, path: Path) -> str:
    """The digest at the end, which must be that of everything before it."""
    prefix = bytearray(min(size, PREFIX.size))
    read_exactly(descriptor, memoryview(prefix), 0, path)
    if not prefix.startswith(MAGIC):
        raise CorruptInputError(f"{path} is not a calibration file")
    if size < PREFIX.size + digest.DIGEST_BYTES:
        raise MismatchError(f"{path} has been cut; calibrate again")
    hasher = blake3(max_threads=blake3.AUTO)
    end = size - digest.DIGEST_BYTES
    for piece in pieces(descriptor, 0, end, path):
        hasher.update(piece)
    stored = bytearray(digest.DIGEST_BYTES)
    read_exactly(descriptor, memoryview(stored), end, path)
    if hasher.digest() != bytes(stored):
        raise MismatchError(f"{path} is damaged or has been cut: its digest does not match; calibrate again")
    return hasher.hexdigest()


def _read_header(descriptor: int, size: int, path: Path) -> tuple[headers.Header, int]:
    prefix = bytearray(PREFIX.size)
    read_exactly(descriptor, memoryview(prefix), 0, path)
    length = PREFIX.unpack(prefix)[1]
    if length > min(headers.MAX_HEADER_BYTES, size - PREFIX.size - digest.DIGEST_BYTES):
        raise CorruptInputError(f"{path} has a header of {length} bytes, which is more than it can hold")
    content = bytearray(length)
    read_exactly(descriptor, memoryview(content), PREFIX.size, path)
    return headers.parse(bytes(content), str(path)), PREFIX.size + length
