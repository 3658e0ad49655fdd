"""Planning: a checkpoint and a recipe become every file and size of the pack, before the first byte is written."""

import os
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from ..layout.formats import Format
from ..layout.plan import PackPlan, expert_shape, told_bytes
from ..layout.record import PROJECTIONS, RecordLayout
from ..manifests import names, schema
from ..manifests.errors import CorruptInputError, StorageError, UsageError
from ..quantize.methods import instruction_set
from . import huggingface, mlx
from .calibration.file import CalibrationFile
from .calibration.matching import recorded, require_calibration
from .checkpoint import CONFIG, Checkpoint, read_json
from .families import find_family
from .recipe import Coding, Codings, Recipe, of_manifest, passes_through
from .tensors import Encoding, Source
from .trunk import TrunkItem, plan_item

MOST_DEFAULT_JOBS = 16  # each holds an expert of up to 67 MB (FP8, 397B); more would wait for the disk anyway


@dataclass(frozen=True)
class Recoded:
    """A projection of a layer's experts that is quantized anew: from what to what."""

    layer: int
    projection: str
    encoding: Encoding
    coding: Coding


@dataclass(frozen=True)
class Packing:
    """All that building a pack needs: the checkpoint understood, what becomes of its trunk, and the layout's plan.

    `codings` are the recipe's, of each layer by projection. The calibration, if there is one, must stay open.
    """

    source: Source
    recipe: Recipe
    codings: Codings
    trunk: tuple[TrunkItem, ...]
    plan: PackPlan
    calibration: CalibrationFile | None = None

    @property
    def recoded(self) -> list[Recoded]:
        """The projections of layers that are quantized anew, those that pass through left out."""
        return [
            Recoded(index, name, layer.encodings[name], coding)
            for index, (layer, codings) in enumerate(zip(self.source.experts, self.codings, strict=True))
            for name, coding in codings.items()
            if not passes_through(layer.encodings[name], coding.format)
        ]

    @property
    def projection_weights(self) -> int:
        """How many weights one projection of one layer's experts has."""
        model = self.source.model
        return model.hidden_size * model.moe_intermediate_size * model.num_experts


def understand(checkpoint: Checkpoint) -> Source:
    """Find out what a checkpoint is and where each tensor lies.

    Raises UnsupportedError for a family or an encoding that this version does not pack, CorruptInputError for a
    tensor that is missing or not as config.json says.
    """
    family = find_family(checkpoint.config)
    model = family.geometry(checkpoint.config)
    interpret = mlx.interpret if mlx.speaks(checkpoint) else huggingface.interpret
    return interpret(checkpoint, family, model)


def plan_pack(source: Source, recipe: Recipe, calibration: CalibrationFile | None = None) -> Packing:
    """Plan a pack. The calibration must be one of this very checkpoint, see `matching.require_same`.

    Raises UsageError if the recipe does not fit the model, if its methods and the calibration do not fit each other,
    or MOEPACK_ISA does not fit this machine; CorruptInputError if config.json is no longer what was understood.
    """
    packing = lay_out(source, recipe, calibration)
    _require_config_as_read(source.checkpoint)
    methods = dict.fromkeys(coding.method for layer in packing.codings for coding in layer.values())
    require_calibration(calibration, methods)
    return packing


def lay_out(source: Source, recipe: Recipe, calibration: CalibrationFile | None = None) -> Packing:
    """Like `plan_pack`, but whether the calibration is the right one is not asked: for plans that are only compared."""
    _require_instruction_set()
    codings = recipe.codings(source.model)
    trunk = tuple(plan_item(entry, recipe) for entry in source.trunk)
    formats = {item.entry.tensor.stem: item.format.name for item in trunk if item.format is not None}
    plan = PackPlan(
        model=source.model,
        records=_records(source.model, codings),
        trunk=tuple(spec for item in trunk for spec in item.specs),
        trunk_formats=formats,
        copied=source.checkpoint.copied,
        recipe=_manifest_recipe(codings, recipe, calibration),
        source=_manifest_source(source),
    )
    return Packing(source, recipe, codings, trunk, plan, calibration)


def told_of_experts(model: schema.Model, codings: Codings) -> int:
    """Bytes by which manifests differ that differ only in their experts' codings, from a number that is all others'."""
    return told_bytes(_records(model, codings), of_manifest(codings, ""))


def _records(model: schema.Model, codings: Codings) -> tuple[RecordLayout, ...]:
    """A layout for each layer; layers of the same formats share one."""
    layouts: dict[tuple[Format, ...], RecordLayout] = {}
    formats: list[dict[str, Format]] = [{name: layer[name].format for name in PROJECTIONS} for layer in codings]
    for layer in formats:
        if (key := tuple(layer.values())) not in layouts:
            layouts[key] = RecordLayout.of(expert_shape(model), layer)
    return tuple(layouts[tuple(layer.values())] for layer in formats)


def default_jobs() -> int:
    """As many threads as this process may run at once, up to MOST_DEFAULT_JOBS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_DEFAULT_JOBS)


def require_new(target: Path) -> None:
    """Raise UsageError if a pack cannot be made at `target`: before a checkpoint is fetched, not hours later."""
    if os.path.lexists(target):
        raise UsageError(f"{target} exists; remove it or choose another output")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a folder to write into; make it or choose another output")
    if (target.parent / names.MANIFEST_FILE).exists() and (target.parent / names.DIGESTS_FILE).exists():
        raise UsageError(f"{target} lies in the pack {target.parent}, where nothing else may; choose another output")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise StorageError(f"{target.parent} may not be written into; choose another output")


def require_outside(target: Path, checkpoint: Checkpoint) -> None:
    """Raise UsageError if `target` lies inside the checkpoint's directory, whose files would then not be its own."""
    if checkpoint.origin.directory.resolve() in target.resolve().parents:
        raise UsageError(f"{target} lies inside the checkpoint; choose an output elsewhere")


def _require_config_as_read(checkpoint: Checkpoint) -> None:
    # The writer copies the file as it was when the plan was made, so that is the one which must be the one understood.
    file = checkpoint.origin.directory / CONFIG
    if read_json(file) != checkpoint.config:
        raise CorruptInputError(f"{file} changed while it was read; run the same command again")


def _require_instruction_set() -> None:
    try:
        instruction_set()
    except ValueError as error:
        raise UsageError(f"{error}; unset it to use the best one") from None


def _manifest_recipe(codings: Codings, recipe: Recipe, calibration: CalibrationFile | None) -> schema.Recipe:
    written = of_manifest(codings, recipe.trunk_format)
    return written if calibration is None else replace(written, calibration=recorded(calibration))


def _manifest_source(source: Source) -> schema.Source:
    origin = source.checkpoint.origin
    return schema.Source(
        dialect=source.dialect,
        repository=origin.repository,
        revision=origin.revision,
        files=source.checkpoint.source_files,
    )
