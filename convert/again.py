"""A pack's own recipe followed again: the packing that its manifest describes, of a checkpoint that is at hand.

What of the checkpoint is not as the manifest says is told, not judged: a digest decides whether bytes are the same.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from ..layout.plan import BLANK
from ..manifests import schema
from ..manifests.diff import ABSENT, MADE, Change, changes
from ..manifests.errors import MismatchError, UnsupportedError, UsageError
from ..manifests.progress import Progress
from .calibration.file import CalibrationFile
from .calibration.matching import require_same
from .checkpoint import Checkpoint
from .plan import Packing, plan_pack, understand
from .recipe import Coding, Override, Recipe, checked_trunk_format
from .sources import digest_changes


@dataclass(frozen=True)
class Again:
    """How a pack is made again, and which weight files and copied files of the checkpoint are not the manifest's.

    Weight files are known by name, size and header, and by their SHA-256 only if `source_digests`.
    """

    packing: Packing
    source: list[Change]
    files: list[Change]
    source_digests: bool = False


def again(manifest: schema.Manifest, pack: Path, checkpoint: Checkpoint, calibration: CalibrationFile | None) -> Again:
    """Plan the pack at `pack` again.

    Raises MismatchError if the checkpoint is of another model or the calibration is another one, UsageError if one is
    missing or too much, UnsupportedError if this moepack plans otherwise than the one that wrote the pack.
    """
    _require_calibration(manifest, pack, calibration)
    understood = understand(checkpoint)
    if calibration is not None:
        require_same(calibration, understood)
    for change in changes(msgspec.to_builtins(manifest.model), msgspec.to_builtins(understood.model)):
        where = checkpoint.origin.directory
        told = f"{change.field} is {change.b!s:.60}, not {change.a!s:.60}"
        raise MismatchError(f"{where} is another model than {pack}'s: {told}")
    packing = plan_pack(understood, recipe_of(manifest.recipe, pack), calibration)
    _require_same_plan(manifest, pack, packing)
    return Again(packing, _source(manifest, checkpoint), _files(manifest, packing))


def with_source_digests(made: Again, manifest: schema.Manifest, progress: Progress) -> Again:
    """The same, with weight files that have another SHA-256 than the manifest's: reads the whole checkpoint.

    Raises CorruptInputError for a file that has gone or changed meanwhile, StorageError.
    """
    changed = digest_changes(manifest.source.files, made.packing.source.checkpoint.files, progress)
    return replace(made, source=[*made.source, *changed], source_digests=True)


def recipe_of(recorded: schema.Recipe, pack: Path) -> Recipe:
    """The recipe that a manifest records. Raises UnsupportedError for names that this moepack does not know."""
    try:
        overrides = [
            Override(tuple(one.layers), tuple(one.projections), Coding.parse(one.expert_format, one.method))
            for one in ([] if recorded.overrides is UNSET else recorded.overrides)
        ]
        coding = Coding.parse(recorded.expert_format, recorded.method)
        return Recipe(coding, checked_trunk_format(recorded.trunk_format), tuple(overrides))
    except UsageError as error:
        raise UnsupportedError(f"{pack} was made by a recipe that this moepack cannot follow: {error}") from error


def _require_calibration(manifest: schema.Manifest, pack: Path, calibration: CalibrationFile | None) -> None:
    recorded = manifest.recipe.calibration
    if recorded is UNSET:
        if calibration is not None:
            raise UsageError(f"{pack} was made without a calibration; leave --calibration out")
    elif calibration is None:
        raise UsageError(f"{pack} was made with the calibration {recorded.digest}; give it as --calibration")
    elif calibration.digest != recorded.digest:
        raise MismatchError(
            f"{calibration.path} is the calibration {calibration.digest}, and {pack} was made with {recorded.digest}"
        )


def _require_same_plan(manifest: schema.Manifest, pack: Path, packing: Packing) -> None:
    plan = packing.plan
    for index, listed in enumerate(manifest.layers):
        blank = plan.layer(index, {part.name: BLANK for part in plan.records[index].components})
        parts = [msgspec.structs.replace(part, blake3=BLANK) for part in listed.components]
        if msgspec.structs.replace(listed, components=parts) != blank:
            raise MismatchError(f"{pack}: its recipe does not give {listed.file} the formats that it has")
    told = changes(msgspec.to_builtins(manifest.recipe), msgspec.to_builtins(plan.recipe))
    for change in told:
        raise UnsupportedError(
            f"{pack} was made with {change.field} {change.a}, and this moepack makes {change.b} of its recipe"
        )


def _source(manifest: schema.Manifest, checkpoint: Checkpoint) -> list[Change]:
    def listed(files: list[schema.SourceFile]) -> dict[str, Any]:
        return {file.name: {"size": file.size, "header_blake3": file.header_blake3} for file in files}

    return list(changes(listed(manifest.source.files), listed(checkpoint.source_files)))


def _files(manifest: schema.Manifest, packing: Packing) -> list[Change]:
    listed = {file.name: file.blake3 for file in manifest.files if file.name not in MADE}
    there = {name: file.blake3 for name, file in packing.plan.copied_files.items()}
    pairs = ((name, listed.get(name, ABSENT), there.get(name, ABSENT)) for name in sorted(listed.keys() | there.keys()))
    return [Change(name, a, b) for name, a, b in pairs if a != b]
