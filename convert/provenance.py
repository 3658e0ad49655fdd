"""Provenance of a pack: an in-toto Statement v1 with SLSA's provenance predicate v1, for files beside packs.

All that it says of sources and recipe stands in the pack's manifest; who built it, with which versions of what, is said
here only. Times come from SOURCE_DATE_EPOCH or are left out. Reads no weights: it repeats what the pack says.
"""

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from ..layout.atomic import replace
from ..manifests import inventory, names, sums
from ..manifests.errors import MismatchError, UsageError
from ..manifests.files import Folder
from ..manifests.manifest import Sealed, read_sealed
from ..manifests.schema import Manifest

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "moepack:build/v1"
BUILDER = "moepack:builder/unnamed"
LIBRARIES = ("moepack", "blake3", "ml_dtypes", "numpy", "zstandard")


@dataclass(frozen=True)
class Builder:
    """Who has built, and in which run: URIs, as whoever asks for the statement gives them."""

    id: str
    invocation: str | None = None


def provenance_of(pack: Path, builder: Builder) -> dict[str, Any]:
    """The statement of `pack`. Raises as `read_sealed` does, and MismatchError if its SHA256SUMS are damaged."""
    with Folder(pack) as folder:
        sealed = read_sealed(folder)
        inventory.check(folder, sealed.manifest)
        subjects = list(_subjects(folder, sealed))
    return {
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": _definition(sealed.manifest),
            "runDetails": _run(builder),
        },
    }


def write(statement: dict[str, Any], out: Path) -> None:
    """Write a statement as JSON."""
    replace(out, (json.dumps(statement, indent=2) + "\n").encode())


def _subjects(pack: Folder, sealed: Sealed) -> Iterator[dict[str, Any]]:
    """The pack by its root digest, which is that of its manifest; then every other file."""
    manifest, digests = sealed
    listed = sums.read(pack, manifest)
    if listed is None:
        raise MismatchError(f"{pack / names.SUMS_FILE} is damaged; `moe-pack repair` can make it again")
    yield {"name": names.MANIFEST_FILE, "digest": digests._asdict()}
    listed[names.SUMS_FILE] = sha256(sums.render(listed)).hexdigest()
    whole = {file.name: {"blake3": file.blake3} for file in manifest.files}
    for name in sorted(listed):
        yield {"name": name, "digest": {"sha256": listed[name]} | whole.get(name, {})}


def _definition(manifest: Manifest) -> dict[str, Any]:
    source = manifest.source
    recipe = msgspec.to_builtins(manifest.recipe)
    arithmetic = recipe.pop("arithmetic")
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": {
            "source": {"dialect": source.dialect, "repository": source.repository, "revision": source.revision},
            "recipe": recipe,
        },
        "internalParameters": {"formatVersion": manifest.version, "arithmetic": arithmetic},
        "resolvedDependencies": list(_dependencies(manifest)),
    }


def _dependencies(manifest: Manifest) -> Iterator[dict[str, Any]]:
    source = manifest.source
    where = f"pkg:huggingface/{source.repository}@{source.revision}" if source.repository and source.revision else None
    for file in source.files:
        uri = {"uri": f"{where}#{file.name}"} if where else {}
        yield {"name": file.name, **uri, "digest": {"sha256": file.sha256}}
    calibration = manifest.recipe.calibration
    if calibration is not UNSET:
        yield {"name": "calibration", "digest": {"blake3": calibration.digest}}


def _run(builder: Builder) -> dict[str, Any]:
    versions = {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}
    metadata = {"invocationId": builder.invocation} if builder.invocation is not None else {}
    metadata |= _finished()
    return {
        "builder": {"id": builder.id, "version": versions},
        **({"metadata": metadata} if metadata else {}),
    }


def _finished() -> dict[str, str]:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        return {}
    try:
        moment = datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"SOURCE_DATE_EPOCH is {epoch!r}, not a time in seconds since 1970") from error
    return {"finishedOn": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}
