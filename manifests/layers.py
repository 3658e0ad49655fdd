"""Reading a layer file once, and naming the expert and component of whatever is wrong in it.

Each record has a digest, and each component has one over all experts: a damaged byte spoils one row and one column,
and where they cross it lies.
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from blake3 import blake3

from .digest import Advance, RecordHasher, opened
from .errors import StorageError
from .files import FilePlace, read_exactly
from .places import SOUGHT_EVERYWHERE, Place, Places
from .report import Finding
from .rules import used_bytes
from .schema import ExpertLayer


@dataclass
class LayerScan:
    """A layer file as it is: per expert its digest (None if unreadable, with the reason) and whether it is padded.

    A record that was not to be read has no digest either. `columns` are the components' digests, by name, and `sha256`
    is the file's; both are empty when a record is missing.
    `strange` are the experts whose records are not what digests.bin promises, `homes` where some of them belong.
    """

    records: list[bytes | None] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)
    badly_padded: set[int] = field(default_factory=set)
    columns: dict[str, str] = field(default_factory=dict)
    sha256: str = ""
    strange: set[int] = field(default_factory=set)
    homes: dict[int, Place] = field(default_factory=dict)


def scan(
    path: FilePlace,
    index: int,
    layer: ExpertLayer,
    experts: int,
    advance: Advance,
    places: Places | None = None,
    chosen: Container[int] | None = None,
) -> LayerScan:
    """Read the file of layer `index` at `path`, and compare its records with what `places` promises, if given.

    All of it, or the `chosen` records. Raises StorageError or CorruptInputError if it cannot even be opened.
    """
    scanning = _Scanning(index, layer, places, whole=chosen is None)
    buffer = memoryview(bytearray(layer.stride))
    with opened(path) as descriptor:
        for expert in range(experts):
            if chosen is not None and expert not in chosen:
                scanning.skip()
                continue
            try:
                read_exactly(descriptor, buffer, expert * layer.stride, path)
            except StorageError as error:
                scanning.miss(expert, str(error))
                continue
            scanning.add(expert, buffer)
            advance(layer.stride)
    return scanning.finish()


class _Scanning:
    """A scan under way: takes the records of one layer in the order of experts."""

    def __init__(self, index: int, layer: ExpertLayer, places: Places | None, *, whole: bool) -> None:
        self._index, self._layer, self._places, self._whole = index, layer, places, whole
        self._columns = {component.name: blake3() for component in layer.components}
        self._file = sha256()
        self._result = LayerScan()

    def add(self, expert: int, record: memoryview) -> None:
        if self._whole:
            self._add_to_file(record)
        if any(record[used_bytes(self._layer) :]):
            self._result.badly_padded.add(expert)
        hasher = RecordHasher()
        hasher.update(record)
        self._result.records.append(hasher.digest(self._index, expert))
        if self._places is not None and self._result.records[-1] != self._places.promised(self._index, expert):
            self._wonder(expert, hasher, self._places)

    def skip(self) -> None:
        self._result.records.append(None)

    def miss(self, expert: int, reason: str) -> None:
        self._result.records.append(None)
        self._result.unreadable[expert] = reason

    def finish(self) -> LayerScan:
        if self._whole and not self._result.unreadable:
            self._result.columns = {name: hasher.hexdigest() for name, hasher in self._columns.items()}
            self._result.sha256 = self._file.hexdigest()
        return self._result

    def _add_to_file(self, record: memoryview) -> None:
        for part in self._layer.components:
            self._columns[part.name].update(record[part.offset : part.offset + part.size])
        self._file.update(record)

    def _wonder(self, expert: int, hasher: RecordHasher, places: Places) -> None:
        everywhere = len(self._result.strange) < SOUGHT_EVERYWHERE
        self._result.strange.add(expert)
        home = places.home(hasher, (self._index, expert), everywhere=everywhere)
        if home is not None:
            self._result.homes[expert] = home


def findings(index: int, layer: ExpertLayer, found: LayerScan, places: Places | None) -> Iterator[Finding]:
    """What is wrong in layer `index`, scanned with the same `places`: None if the record digests are lost."""
    for expert, reason in found.unreadable.items():
        yield Finding(layer.file, f"cannot be read: {reason}", index, expert, kind="unreadable")
    for expert in sorted(found.badly_padded):
        yield Finding(layer.file, "is not zero", index, expert, "padding")
    spoiled = [part.name for part in layer.components if found.columns.get(part.name, part.blake3) != part.blake3]
    if places is None:
        yield from (Finding(layer.file, "is damaged in some expert", index, None, name) for name in spoiled)
        return
    if spoiled and not found.strange:
        contradiction = "differs from the manifest, though every record agrees with digests.bin"
        yield from (Finding(layer.file, contradiction, index, None, name) for name in spoiled)
    yield from _moved(index, layer, found.homes, len(found.records))
    rows = found.strange - found.homes.keys()
    # A row with bad padding is explained by that, unless no other row accounts for the spoiled components.
    rows = (rows - found.badly_padded) or (rows if spoiled else set())
    yield from _crossings(index, layer, sorted(rows), spoiled, found)


def _moved(index: int, layer: ExpertLayer, moved: Mapping[int, tuple[int, int]], experts: int) -> Iterator[Finding]:
    donors = {donor for donor, _ in moved.values()}
    if len(moved) == experts and len(donors) == 1 and all(expert == home for expert, (_, home) in moved.items()):
        yield Finding(layer.file, f"holds the records of layer {donors.pop()}", index)
        return
    for expert, (donor, home) in sorted(moved.items()):
        yield Finding(layer.file, f"holds the record of layer {donor}, expert {home}", index, expert)


def _crossings(
    index: int, layer: ExpertLayer, rows: list[int], spoiled: list[str], found: LayerScan
) -> Iterator[Finding]:
    for expert in rows:
        if not found.columns:
            yield Finding(layer.file, "is damaged", index, expert)
        elif not spoiled:
            contradiction = "differs from digests.bin, though its components are as the manifest says"
            yield Finding(layer.file, contradiction, index, expert)
        elif len(rows) == 1:
            yield from (Finding(layer.file, "is damaged", index, expert, name) for name in spoiled)
        else:
            yield Finding(layer.file, "is damaged", index, expert, " or ".join(spoiled))
