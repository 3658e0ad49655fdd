"""An opened pack: its manifest believed only after it agrees with itself, with the formats and with the files.

`Pack.open` checks names, sizes, the record digests' own digest and the trunk's header: everything short of reading
the weights, in milliseconds. `read_record`, or whoever compares with `record_digest`, checks the weights.
"""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..manifests import digest, inventory, schema
from ..manifests.errors import CorruptInputError, MismatchError
from ..manifests.files import Folder, Member, open_regular, read_exactly, read_small
from ..manifests.manifest import Sealed, read_sealed
from ..manifests.rules import under
from .formats import Format
from .plan import expert_shape
from .record import RecordLayout
from .tensorfile import Array, TensorFile
from .trunk import check_trunk, parse_format


@dataclass(frozen=True)
class RecordAddress:
    """Where a record is: `size` bytes (the stride) from `offset` of the open file `fd`."""

    fd: int
    offset: int
    size: int


class Pack:
    """A structurally sound pack with every layer file open. Thread-safe; a context manager.

    `records` has one layout per layer; `trunk` is the opened trunk file, `folder` the opened directory; `digest` is
    that of the manifest as it was read.
    """

    def __init__(self, folder: Folder, sealed: Sealed, resources: ExitStack) -> None:
        self.folder = folder
        self.path = path = folder.path
        self.manifest = manifest = sealed.manifest
        self.digest = sealed.pack_digest
        self.model = manifest.model
        self.records = tuple(_layout(path, manifest, layer) for layer in manifest.layers)
        with under("T1"):
            self.trunk = resources.enter_context(TensorFile.open(folder / manifest.trunk.file))
        check_trunk(self.trunk, manifest.trunk.formats)
        self._digests = _read_digests(folder, manifest)
        self._descriptors = [_open_layer(folder / layer.file, resources) for layer in manifest.layers]
        self._resources = resources

    @classmethod
    def open(cls, path: Path) -> "Pack":
        """Open the pack in the directory `path`.

        Raises UsageError if there is no such directory; CorruptInputError for anything malformed, missing, of another
        size or not a regular file; MismatchError if the manifest or the record digests were altered; UnsupportedError
        if the pack needs a newer version.
        """
        with ExitStack() as resources:
            folder = resources.enter_context(Folder(path))
            sealed = read_sealed(folder)
            inventory.check(folder, sealed.manifest)
            pack = cls(folder, sealed, resources)
            pack._resources = resources.pop_all()
            return pack

    @property
    def expert_bytes(self) -> int:
        """Bytes of all layer files."""
        return sum(layout.stride for layout in self.records) * self.model.num_experts

    @property
    def total_bytes(self) -> int:
        """Bytes of all files but the manifest."""
        return self.expert_bytes + sum(file.size for file in self.manifest.files)

    def address(self, layer: int, expert: int) -> RecordAddress:
        """Where the record of `expert` in `layer` is. Raises IndexError outside the model."""
        stride = self.records[layer].stride
        return RecordAddress(self._descriptors[layer], self._checked(expert) * stride, stride)

    def record_digest(self, layer: int, expert: int) -> bytes:
        """The 32-byte digest that the record must have; see `digest.of_record`."""
        start = (layer * self.model.num_experts + self._checked(expert)) * digest.DIGEST_BYTES
        return self._digests[start : start + digest.DIGEST_BYTES]

    def is_sound(self, layer: int, expert: int, record: memoryview) -> bool:
        """Whether these bytes are that record's, by its digest."""
        return digest.of_record(record, layer, expert) == self.record_digest(layer, expert)

    def stored_record(self, layer: int, expert: int) -> Array:
        """The record as it is, whatever its digest: uint8 [stride]. Raises StorageError if it cannot be read."""
        address = self.address(layer, expert)
        record = np.empty(address.size, np.uint8)
        read_exactly(address.fd, record.data, address.offset, self.path / self.manifest.layers[layer].file)
        return record

    def read_record(self, layer: int, expert: int) -> Array:
        """The record of `expert` in `layer`: uint8 [stride]. Raises MismatchError if its digest is another."""
        record = self.stored_record(layer, expert)
        if not self.is_sound(layer, expert, record.data):
            file, address = self.path / self.manifest.layers[layer].file, self.address(layer, expert)
            raise MismatchError(
                f"{file}: expert {expert} (bytes {address.offset}+{address.size}) is damaged;"
                f" `moe-pack verify {self.path}` names every damaged part (P3)"
            )
        return record

    def close(self) -> None:
        """Close every file."""
        self._resources.close()

    def __enter__(self) -> "Pack":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, expert: int) -> int:
        if not 0 <= expert < self.model.num_experts:
            raise IndexError(f"there is no expert {expert}; the model has {self.model.num_experts}")
        return expert


def _layout(path: Path, manifest: schema.Manifest, layer: schema.ExpertLayer) -> RecordLayout:
    file = str(path / layer.file)
    formats: dict[str, Format] = {projection: parse_format(name, file) for projection, name in layer.formats.items()}
    try:
        layout = RecordLayout.of(expert_shape(manifest.model), formats)
    except ValueError as error:
        raise CorruptInputError(f"{file}: {error} (F2)") from error
    claimed = [(component.name, component.offset, component.size) for component in layer.components]
    if claimed != [(component.name, component.offset, component.size) for component in layout.components]:
        raise CorruptInputError(f"{file}: its components have other sizes than its formats give (F3)")
    return layout


def _read_digests(folder: Folder, manifest: schema.Manifest) -> bytes:
    listed = next(file for file in manifest.files if file.name == manifest.digests)
    content = read_small(folder / manifest.digests, listed.size)
    if digest.of_bytes(content).hex() != listed.blake3:
        raise MismatchError(f"{folder / manifest.digests} was altered; fetch or build the pack again (P5)")
    return content


def _open_layer(path: Member, resources: ExitStack) -> int:
    descriptor = open_regular(path)
    resources.callback(os.close, descriptor)
    return descriptor
