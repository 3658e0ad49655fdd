"""Where a pack's bytes go in: a layer's records and the trunk's tensors, hashed on their way to the disk."""

from collections.abc import Iterable
from concurrent.futures import Executor

from blake3 import blake3

from .atomic import AtomicFile
from .record import RecordLayout
from .tensorfile import Array, TensorFileWriter, TensorSpec, byte_view

PARALLEL_BYTES = 256 * 1024  # below this, handing work to another thread costs more than hashing


class LayerSink:
    """Takes the records of one layer in the order of experts."""

    def __init__(self, file: AtomicFile, layout: RecordLayout, pool: Executor) -> None:
        self._file, self._layout, self._pool = file, layout, pool
        self._digests: list[bytes] = []
        self._columns = {component.name: blake3() for component in layout.components}

    def append(self, record: memoryview | Array) -> None:
        """Write one record of exactly `stride` bytes whose padding is zero; the buffer may be reused afterwards.

        Raises ValueError for any other record, StorageError when the disk is full or fails.
        """
        view = record.cast("B") if isinstance(record, memoryview) else byte_view(record)
        if len(view) != self._layout.stride or any(view[self._layout.size :]):
            raise ValueError(f"a record has {self._layout.stride} bytes and zeros after byte {self._layout.size}")
        if len(view) < PARALLEL_BYTES:
            self._hash_record(view)
            self._hash_columns(view)
            self._file.write(view)
            return
        hashing = [self._pool.submit(self._hash_record, view), self._pool.submit(self._hash_columns, view)]
        try:
            self._file.write(view)
        finally:
            for work in hashing:
                work.result()

    @property
    def record_digests(self) -> bytes:
        """The digests of the records so far, joined."""
        return b"".join(self._digests)

    @property
    def component_digests(self) -> dict[str, str]:
        """Of each component, the digest over the records so far."""
        return {name: hasher.hexdigest() for name, hasher in self._columns.items()}

    def _hash_record(self, view: memoryview) -> None:
        self._digests.append(blake3(view).digest())

    def _hash_columns(self, view: memoryview) -> None:
        for component in self._layout.components:
            self._columns[component.name].update(view[component.offset : component.offset + component.size])


class TrunkSink:
    """Takes the trunk's tensors in the plan's order."""

    def __init__(self, file: AtomicFile, tensors: tuple[TensorSpec, ...]) -> None:
        self._hashing = HashingSink(file)
        self._writer = TensorFileWriter(self._hashing, tensors)

    def write_blocks(self, name: str, blocks: Iterable[Array]) -> None:
        """Append the next tensor of the plan as blocks of whole rows, top to bottom.

        Raises ValueError if they are not that tensor, StorageError if the disk fails.
        """
        self._writer.write_blocks(name, blocks)

    def finish(self) -> str:
        """The file's digest. Raises ValueError if a tensor is missing."""
        self._writer.finish()
        return self._hashing.hexdigest()


class HashingSink:
    """Passes bytes on to a file and hashes them."""

    def __init__(self, file: AtomicFile) -> None:
        self._file = file
        self._hasher = blake3(max_threads=blake3.AUTO)

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        self._hasher.update(data)
        self._file.write(data)

    def hexdigest(self) -> str:
        """The digest of all that was written."""
        return self._hasher.hexdigest()
