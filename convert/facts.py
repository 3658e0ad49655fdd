"""What the commands tell: plain dictionaries, the same for `--json` and for the tables of `report`.

Sizes are in bytes, times in seconds.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..layout.plan import PackPlan
from ..layout.reader import Pack
from ..layout.record import ALIGNMENT, PROJECTIONS, RecordLayout
from ..manifests.manifest import pack_digest
from ..manifests.report import Report
from ..manifests.schema import Model
from ..quantize.methods import METHODS
from .estimate import Estimate
from .experts import Taken
from .pipeline import Built
from .plan import Packing
from .recipefile import runs, written
from .weighing import SAMPLED_EXPERTS
from .wish import Choice, Formats, Step


def of_plan(packing: Packing, choice: Choice | None, estimate: Estimate, where: Path) -> dict[str, Any]:
    """What `build` would write, what of the checkpoint it leaves out, and whether it fits on the disk at `where`.

    `choice` says how the recipe was chosen, if it was.
    """
    plan, origin = packing.plan, packing.source.checkpoint.origin
    free = shutil.disk_usage(existing(where)).free
    return {
        "source": {
            "directory": str(origin.directory),
            "repository": origin.repository,
            "revision": origin.revision,
            "dialect": packing.source.dialect,
            "expert_encodings": packing.source.expert_encodings,
            "trunk_encodings": packing.source.trunk_encodings,
            "bytes": sum(file.size for file in packing.source.checkpoint.files),
        },
        "left_out": [
            {"what": left.what, "tensors": left.tensors, "bytes": left.size} for left in packing.source.left_out
        ],
        "model": of_model(plan.model),
        "recipe": msgspec.to_builtins(plan.recipe),
        **({"choice": of_choice(choice)} if choice else {}),
        "experts": _of_experts(packing),
        "trunk": {"tensors": len(plan.trunk), "quantized": len(plan.trunk_formats), "bytes": plan.trunk_bytes},
        "digests_bytes": plan.digest_bytes,
        "sums_bytes": plan.sums_bytes,
        "copied_bytes": plan.copied_bytes,
        "total_bytes": plan.total_bytes,
        "bits_per_weight": plan.bits_per_weight,
        "disk": {"path": str(where), "free_bytes": free, "fits": free >= plan.total_bytes},
        "estimate": {
            "jobs": estimate.jobs,
            "expert_weights_per_second_per_job": estimate.expert_weights_per_second,
            "quantizing_seconds": estimate.quantizing_seconds,
            "read_bytes_per_second": estimate.reading_rate,
            "write_bytes_per_second": estimate.writing_rate,
            "disk_seconds": estimate.disk_seconds,
            "seconds": estimate.seconds,
        },
    }


def _of_experts(packing: Packing) -> dict[str, Any]:
    plan = packing.plan
    return {
        "records": plan.model.num_experts * plan.model.num_layers,
        **of_records(plan.records),
        "bits_per_weight": plan.expert_bits_per_weight,
        "bytes": plan.expert_bytes,
        "passed_through": not packing.recoded,
    }


def of_records(records: Sequence[RecordLayout]) -> dict[str, Any]:
    """The records of each layout with the layers that have it, and the size and padding of the largest of them."""
    largest = max(records, key=lambda layout: layout.stride)
    return {
        "layouts": [_of_layout(layers, records[layers[0]]) for layers in _alike(records)],
        "record_bytes": largest.stride,
        "padding_bytes": largest.stride - largest.size,
        "alignment_bytes": ALIGNMENT,
    }


def _of_layout(layers: tuple[int, ...], layout: RecordLayout) -> dict[str, Any]:
    formats = {projection: format_.name for projection, format_ in layout.formats.items()}
    sizes = {"record_bytes": layout.stride, "padding_bytes": layout.stride - layout.size}
    return {"layers": runs(layers), "formats": formats, **sizes}


def _alike(records: Sequence[RecordLayout]) -> list[tuple[int, ...]]:
    """The layers of each layout, by the first of them."""
    found: dict[tuple[str, ...], list[int]] = {}
    for layer, layout in enumerate(records):
        found.setdefault(tuple(format_.name for format_ in layout.formats.values()), []).append(layer)
    return [tuple(layers) for layers in found.values()]


def of_choice(choice: Choice) -> dict[str, Any]:
    """How a recipe was chosen. Costs are predicted divergences in nats if the sensitivities were measured."""
    wish, sensitivities = choice.wish, choice.sensitivities
    return {
        "recipe": written(choice.recipe),
        "budget_bytes": wish.budget,
        "bits": wish.bits,
        "sensitivities": {
            "measured": sensitivities.measured,
            "positions": sensitivities.positions,
            "format": sensitivities.format,
        },
        "sampled_experts_per_layer": SAMPLED_EXPERTS,
        "expert_capacity_bytes": choice.capacity,
        "expert_bytes": choice.size,
        "cost": choice.cost,
        "trunk_cost": choice.trunk_cost,
        "layers": [
            {"layers": group.layers, "formats": _names(group.formats), "bytes": group.size, "cost": group.cost}
            for group in choice.groups
        ],
        "other_sizes": [{"expert_bytes": size, "cost": cost} for size, cost in choice.others],
        "saving": _of_step(choice.saving),
        "spending": _of_step(choice.spending),
    }


def _of_step(step: Step | None) -> dict[str, Any] | None:
    """A change of one layer: its bytes and costs are what it would add."""
    if step is None:
        return None
    formats = {"before": _names(step.before), "after": _names(step.after)}
    return {"layer": step.layer, **formats, "bytes": step.size, "cost": step.cost}


def _names(formats: Formats) -> dict[str, str]:
    return {projection: format_.name for projection, format_ in zip(PROJECTIONS, formats, strict=True)}


def of_model(model: Model) -> dict[str, Any]:
    """A model's geometry in a few numbers."""
    return {
        "family": model.family,
        "layers": model.num_layers,
        "full_attention_layers": model.layer_types.count("full_attention"),
        "hidden_size": model.hidden_size,
        "experts": model.num_experts,
        "experts_per_token": model.num_experts_per_tok,
        "expert_intermediate_size": model.moe_intermediate_size,
        "vocab_size": model.vocab_size,
    }


def of_build(plan: PackPlan, built: Built, target: Path, seconds: float) -> dict[str, Any]:
    """What a build has written, how long this run took, and which methods the matrices that it quantized took."""
    return {
        "pack": str(target),
        "pack_digest": pack_digest(target),
        "expert_bytes": plan.expert_bytes,
        "trunk_bytes": plan.trunk_bytes,
        "total_bytes": sum(path.stat().st_size for path in target.rglob("*") if path.is_file()),
        "bits_per_weight": plan.bits_per_weight,
        "seconds": seconds,
        "this_run": {"layers": built.layers, "of_layers": plan.model.num_layers, "quantized": _of_taken(built.taken)},
    }


def _of_taken(taken: Counter[Taken]) -> dict[str, dict[str, int]]:
    """Numbers of matrices, by the method that was asked for and by the one whose result was taken."""
    found: dict[str, dict[str, int]] = {}
    for each, count in sorted(taken.items(), key=lambda pair: METHODS.index(pair[0].kept), reverse=True):
        found.setdefault(each.asked, {})[each.kept] = count
    return found


def of_report(report: Report, pack: Path) -> dict[str, Any]:
    """What a verification found."""
    return {"pack": str(pack), **msgspec.to_builtins(report)}


def of_pack(pack: Pack) -> dict[str, Any]:
    """What the manifest of a structurally sound pack says."""
    manifest = pack.manifest
    formats = {name for layer in manifest.layers for name in layer.formats.values()}
    return {
        "pack": str(pack.path),
        "version": manifest.version,
        "model": of_model(pack.model),
        "source": {
            "dialect": manifest.source.dialect,
            "repository": manifest.source.repository,
            "revision": manifest.source.revision,
            "files": len(manifest.source.files),
        },
        "recipe": msgspec.to_builtins(manifest.recipe),
        "experts": {
            "formats": sorted(formats),
            "records": pack.model.num_experts * pack.model.num_layers,
            **of_records(pack.records),
            "bytes": pack.expert_bytes,
        },
        "trunk": {
            "tensors": len(pack.trunk.entries),
            "quantized": len(manifest.trunk.formats),
            "bytes": pack.trunk.size,
        },
        "files": {file.name: file.size for file in manifest.files},
        "total_bytes": pack.total_bytes,
    }


def existing(path: Path) -> Path:
    """The nearest folder above `path`, or itself, that is there."""
    return next(folder for folder in (path.resolve(), *path.resolve().parents) if folder.exists())
