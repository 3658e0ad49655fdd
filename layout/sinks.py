"""Where a pack's bytes go in: a layer's records and the trunk's tensors, hashed on their way to the disk."""

from collections.abc import Iterable
from concurrent.futures import Executor
from hashlib import sha256

from blake3 import blake3

from ..manifests.digest import PARALLEL_BYTES, Digests, DoubleHasher, of_record
from .atomic import AtomicFile
from .record import RecordLayout
from .tensorfile import Array, TensorFileWriter, TensorSpec, byte_view


class LayerSink:
    """Takes the records of layer `index` in the order of experts."""

    def __init__(self, file: AtomicFile, index: int, layout: RecordLayout, pool: Executor) -> None:
        self._file, self._index, self._layout, self._pool = file, index, layout, pool
        self._digests: list[bytes] = []
        self._sha256 = sha256()
        self._columns = {component.name: blake3() for component in layout.components}

    def append(self, record: memoryview | Array) -> None:
        """Write one record of exactly `stride` bytes whose padding is zero; the buffer may be reused afterwards.

        Raises ValueError for any other record, StorageError when the disk is full or fails.
        """
        view = record.cast("B") if isinstance(record, memoryview) else byte_view(record)
        if len(view) != self._layout.stride or any(view[self._layout.size :]):
            raise ValueError(f"a record has {self._layout.stride} bytes and zeros after byte {self._layout.size}")
        works = (self._hash_record, self._hash_columns, self._sha256.update)
        if len(view) < PARALLEL_BYTES:
            for work in works:
                work(view)
            self._file.write(view)
            return
        hashing = [self._pool.submit(work, view) for work in works]
        try:
            self._file.write(view)
        finally:
            for hashed in hashing:
                hashed.result()

    @property
    def record_digests(self) -> bytes:
        """The digests of the records so far, joined."""
        return b"".join(self._digests)

    @property
    def component_digests(self) -> dict[str, str]:
        """Of each component, the digest over the records so far."""
        return {name: hasher.hexdigest() for name, hasher in self._columns.items()}

    @property
    def sha256(self) -> str:
        """The SHA-256 of the records so far, joined."""
        return self._sha256.hexdigest()

    def _hash_record(self, view: memoryview) -> None:
        self._digests.append(of_record(view, self._index, len(self._digests)))

    def _hash_columns(self, view: memoryview) -> None:
        for component in self._layout.components:
            self._columns[component.name].update(view[component.offset : component.offset + component.size])


class TrunkSink:
    """Takes the trunk's tensors in the plan's order."""

    def __init__(self, file: AtomicFile, tensors: tuple[TensorSpec, ...], pool: Executor) -> None:
        self._hashing = HashingSink(file, pool)
        self._writer = TensorFileWriter(self._hashing, tensors)

    def write_blocks(self, name: str, blocks: Iterable[Array]) -> None:
        """Append the next tensor of the plan as blocks of whole rows, top to bottom.

        Raises ValueError if they are not that tensor, StorageError if the disk fails.
        """
        self._writer.write_blocks(name, blocks)

    def finish(self) -> Digests:
        """The file's digests. Raises ValueError if a tensor is missing."""
        self._writer.finish()
        return self._hashing.digests()


class HashingSink:
    """Passes bytes on to a file and hashes them."""

    def __init__(self, file: AtomicFile, pool: Executor) -> None:
        self._file = file
        self._hasher = DoubleHasher(pool)

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        with self._hasher.updating(data):
            self._file.write(data)

    def digests(self) -> Digests:
        """Both digests of all that was written."""
        return self._hasher.digests()
