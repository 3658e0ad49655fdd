"""Reading a layer file once, and naming the expert and component of whatever is wrong in it.

Each record has a digest, and each component has one over all experts: a damaged byte spoils one row and one column,
and where they cross it lies.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from .digest import DIGEST_BYTES, Advance, of_bytes, opened
from .errors import StorageError
from .files import read_exactly
from .report import Finding
from .rules import used_bytes
from .schema import ExpertLayer

Owners = Mapping[bytes, tuple[int, int]]


@dataclass(frozen=True)
class LayerScan:
    """A layer file as it is: per expert its digest (None if unreadable, with the reason) and whether it is padded.

    `columns` are the components' digests, by name; empty when a record is missing.
    """

    records: list[bytes | None]
    unreadable: dict[int, str]
    badly_padded: set[int]
    columns: dict[str, str]


def scan(path: Path, layer: ExpertLayer, experts: int, advance: Advance) -> LayerScan:
    """Read the whole layer file at `path`. Raises StorageError or CorruptInputError if it cannot even be opened."""
    columns = {component.name: blake3() for component in layer.components}
    result = LayerScan([], {}, set(), {})
    buffer = memoryview(bytearray(layer.stride))
    with opened(path) as descriptor:
        for expert in range(experts):
            try:
                read_exactly(descriptor, buffer, expert * layer.stride, path)
            except StorageError as error:
                result.records.append(None)
                result.unreadable[expert] = str(error)
                continue
            result.records.append(of_bytes(buffer))
            for part in layer.components:
                columns[part.name].update(buffer[part.offset : part.offset + part.size])
            if any(buffer[used_bytes(layer) :]):
                result.badly_padded.add(expert)
            advance(layer.stride)
    if not result.unreadable:
        result.columns.update({name: hasher.hexdigest() for name, hasher in columns.items()})
    return result


def findings(
    index: int, layer: ExpertLayer, found: LayerScan, expected: bytes | None, owners: Owners
) -> Iterator[Finding]:
    """What is wrong in layer `index`; `expected` are its record digests joined, None if they are lost.

    `owners` tells which layer and expert a record digest belongs to, so that what was moved is recognised.
    """
    for expert, reason in found.unreadable.items():
        yield Finding(layer.file, f"cannot be read: {reason}", index, expert, kind="unreadable")
    for expert in sorted(found.badly_padded):
        yield Finding(layer.file, "is not zero", index, expert, "padding")
    spoiled = [part.name for part in layer.components if found.columns.get(part.name, part.blake3) != part.blake3]
    if expected is None:
        yield from (Finding(layer.file, "is damaged in some expert", index, None, name) for name in spoiled)
        return
    damaged = _damaged_rows(found, expected)
    if spoiled and not damaged:
        contradiction = "differs from the manifest, though every record agrees with digests.bin"
        yield from (Finding(layer.file, contradiction, index, None, name) for name in spoiled)
    moved = {expert: owners[digest] for expert, digest in damaged.items() if digest in owners}
    yield from _moved(index, layer, moved, len(found.records))
    rows = damaged.keys() - moved.keys()
    # A row with bad padding is explained by that, unless no other row accounts for the spoiled components.
    rows = (rows - found.badly_padded) or (rows if spoiled else set())
    yield from _crossings(index, layer, sorted(rows), spoiled, found)


def _damaged_rows(found: LayerScan, expected: bytes) -> dict[int, bytes]:
    promised = (expected[i : i + DIGEST_BYTES] for i in range(0, len(expected), DIGEST_BYTES))
    pairs = enumerate(zip(found.records, promised, strict=True))
    return {expert: actual for expert, (actual, wanted) in pairs if actual is not None and actual != wanted}


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
