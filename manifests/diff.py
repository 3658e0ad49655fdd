"""What differs between two packs, by their manifests and record digests alone: no weight is read.

Digests tell which layers, experts, components and files differ; the manifests' other fields tell why.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from . import digest, names
from .digest import DIGEST_BYTES
from .errors import CorruptInputError, StorageError
from .files import read_small
from .manifest import read_sealed
from .schema import Digest, ExpertLayer, File, Manifest, PackFile

Meaning = Literal["model", "source", "origin", "recipe", "files", "bytes", "form"]
ABSENT = "absent"
WEIGHTS = {names.TRUNK_FILE, names.DIGESTS_FILE}
MADE = WEIGHTS | {names.SUMS_FILE}  # files that a packer makes; it copies the others


class Change(Struct, frozen=True):
    """A field, by its path, and what it is in either pack; "absent" where one has none."""

    field: str
    a: Any
    b: Any


class LayerChange(Struct, frozen=True):
    """What differs in a layer file. `experts` is None if record digests cannot tell.

    `components` are those whose digests differ, None if the layers are of different formats.
    """

    layer: int
    file: PackFile
    formats: list[Change]
    components: list[str] | None
    experts: list[int] | None


class Difference(Struct, frozen=True):
    """How two packs differ; equal root digests mean that nothing does.

    `meaning` says what kinds of things do: "model" another geometry, "source" other weight files, "origin" the same
    files from elsewhere, "recipe" another recipe, "files" other configuration or tokenizer, "bytes" other bytes though
    all of these are the same, "form" only the manifest's own form.
    """

    identical: bool
    digest_a: Digest
    digest_b: Digest
    meaning: list[Meaning]
    model: list[Change]
    source: list[Change]
    recipe: list[Change]
    layers: list[LayerChange]
    files: list[Change]
    remarks: list[str]


def compare(a: Path, b: Path) -> Difference:
    """Compare two packs' manifests and record digests. Raises as `read_sealed` does."""
    (one, first), (other, second) = read_sealed(a), read_sealed(b)
    digests = (first.blake3, second.blake3)
    if digests[0] == digests[1]:
        return Difference(True, *digests, [], [], [], [], [], [], [])
    remarks: list[str] = []
    records = _record_digests(a, one, remarks), _record_digests(b, other, remarks)
    found = Difference(
        identical=False,
        digest_a=digests[0],
        digest_b=digests[1],
        meaning=[],
        model=list(changes(_plain(one.model), _plain(other.model))),
        source=list(_source(one, other)),
        recipe=list(changes(_plain(one.recipe), _plain(other.recipe))),
        layers=list(_layers(one, other, *records)),
        files=list(_files(one, other)),
        remarks=remarks,
    )
    return msgspec.structs.replace(found, meaning=_reasons(found))


def _reasons(difference: "Difference") -> list[Meaning]:
    weights = [change.field for change in difference.source if change.field not in ("repository", "revision")]
    files = {change.field for change in difference.files}
    reasons: dict[Meaning, bool] = {
        "model": bool(difference.model),
        "source": bool(weights),
        "origin": bool(difference.source) and not weights,
        "recipe": bool(difference.recipe),
        "files": bool(files - MADE),
    }
    explained = reasons["model"] or reasons["source"] or reasons["recipe"]
    reasons["bytes"] = not explained and bool(difference.layers or files & WEIGHTS)
    reasons["form"] = not any(reasons.values())
    return [name for name, holds in reasons.items() if holds]


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


def changes(a: Any, b: Any, at: str = "") -> Iterator[Change]:
    """The leaves in which two JSON values differ; lists are leaves."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted(a.keys() | b.keys()):
            path = f"{at}.{name}" if at else name
            yield from changes(a.get(name, ABSENT), b.get(name, ABSENT), path)
    elif a != b:
        yield Change(at, a, b)


def _source(a: Manifest, b: Manifest) -> Iterator[Change]:
    """Files by name, so that a checkpoint in other shards says which."""
    plain = [_plain(manifest.source) for manifest in (a, b)]
    for one in plain:
        one["files"] = {file.pop("name"): file for file in one["files"]}
    yield from changes(*plain)


def _files(a: Manifest, b: Manifest) -> Iterator[Change]:
    def listed(files: list[File]) -> dict[str, Any]:
        return {file.name: {"size": file.size, "blake3": file.blake3} for file in files}

    one, other = listed(a.files), listed(b.files)
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            yield Change(name, one.get(name, ABSENT), other.get(name, ABSENT))


def _record_digests(path: Path, manifest: Manifest, remarks: list[str]) -> bytes | None:
    """The record digests, if they are what the manifest says."""
    listed = next(file for file in manifest.files if file.name == manifest.digests)
    try:
        content = read_small(path / listed.name, listed.size)
    except (CorruptInputError, StorageError) as error:
        remarks.append(f"{error}: which experts differ cannot be told")
        return None
    if digest.of_bytes(content).hex() == listed.blake3:
        return content
    remarks.append(f"{path / listed.name} is damaged: which experts differ cannot be told")
    return None


def _layers(a: Manifest, b: Manifest, one: bytes | None, other: bytes | None) -> Iterator[LayerChange]:
    experts = a.model.num_experts
    comparable = one is not None and other is not None and experts == b.model.num_experts
    size = experts * DIGEST_BYTES
    for index, (x, y) in enumerate(zip(a.layers, b.layers, strict=False)):
        differing = None
        if comparable and one is not None and other is not None:
            first, second = one[index * size : (index + 1) * size], other[index * size : (index + 1) * size]
            starts = range(0, size, DIGEST_BYTES)
            differing = [
                at // DIGEST_BYTES for at in starts if first[at : at + DIGEST_BYTES] != second[at : at + DIGEST_BYTES]
            ]
        formats = list(changes(dict(x.formats), dict(y.formats)))
        components = _components(x, y)
        if formats or components or differing or components is None:
            yield LayerChange(index, x.file, formats, components, differing)


def _components(a: ExpertLayer, b: ExpertLayer) -> list[str] | None:
    one, other = ([(part.name, part.offset, part.size) for part in layer.components] for layer in (a, b))
    if one != other:
        return None
    pairs = zip(a.components, b.components, strict=True)
    return [x.name for x, y in pairs if x.blake3 != y.blake3]
