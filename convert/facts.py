"""What the commands tell: plain dictionaries, the same for `--json` and for the tables of `report`.

Sizes are in bytes, times in seconds.
"""

import shutil
from pathlib import Path
from typing import Any

import msgspec

from ..layout.plan import PackPlan
from ..layout.reader import Pack
from ..layout.record import ALIGNMENT, RecordLayout
from ..manifests.manifest import pack_digest
from ..manifests.report import Report
from ..manifests.schema import Model
from .estimate import Estimate
from .plan import Packing


def of_plan(packing: Packing, estimate: Estimate, where: Path) -> dict[str, Any]:
    """What `build` would write, what of the checkpoint it leaves out, and whether it fits on the disk at `where`."""
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
        "recipe": {
            "expert_format": plan.recipe.expert_format,
            "method": plan.recipe.method,
            "trunk_format": plan.recipe.trunk_format,
        },
        "experts": _of_experts(packing),
        "trunk": {"tensors": len(plan.trunk), "quantized": len(plan.trunk_formats), "bytes": plan.trunk_bytes},
        "digests_bytes": plan.digest_bytes,
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
        **of_record(plan.records[0]),
        "bits_per_weight": plan.expert_bits_per_weight,
        "bytes": plan.expert_bytes,
        "passed_through": not packing.recoded_expert_weights,
    }


def of_record(layout: RecordLayout) -> dict[str, int]:
    """A record's size, what of it is padding, and what it is aligned to."""
    return {"record_bytes": layout.stride, "padding_bytes": layout.stride - layout.size, "alignment_bytes": ALIGNMENT}


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


def of_build(plan: PackPlan, target: Path, seconds: float) -> dict[str, Any]:
    """What a build has written, and how long this run took."""
    return {
        "pack": str(target),
        "pack_digest": pack_digest(target),
        "expert_bytes": plan.expert_bytes,
        "trunk_bytes": plan.trunk_bytes,
        "total_bytes": sum(path.stat().st_size for path in target.rglob("*") if path.is_file()),
        "bits_per_weight": plan.bits_per_weight,
        "seconds": seconds,
    }


def of_report(report: Report, pack: Path) -> dict[str, Any]:
    """What a verification found."""
    return {"pack": str(pack), **msgspec.to_builtins(report)}


def of_pack(pack: Pack) -> dict[str, Any]:
    """What the manifest of a structurally sound pack says."""
    manifest = pack.manifest
    formats = {name for layer in manifest.layers for name in layer.formats.values()}
    expert_bytes = sum(layer.stride * pack.model.num_experts for layer in manifest.layers)
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
        "recipe": {
            "expert_format": manifest.recipe.expert_format,
            "method": manifest.recipe.method,
            "trunk_format": manifest.recipe.trunk_format,
        },
        "experts": {
            "formats": sorted(formats),
            "records": pack.model.num_experts * pack.model.num_layers,
            **of_record(pack.records[0]),
            "bytes": expert_bytes,
        },
        "trunk": {
            "tensors": len(pack.trunk.entries),
            "quantized": len(manifest.trunk.formats),
            "bytes": pack.trunk.size,
        },
        "files": {file.name: file.size for file in manifest.files},
        "total_bytes": expert_bytes + sum(file.size for file in manifest.files),
    }


def existing(path: Path) -> Path:
    """The nearest folder above `path`, or itself, that is there."""
    return next(folder for folder in (path.resolve(), *path.resolve().parents) if folder.exists())
