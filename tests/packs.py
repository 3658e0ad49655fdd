"""Making packs in tests, and the reference 2-bit rule in plain numpy."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np

from moepack.convert.checkpoint import Checkpoint
from moepack.convert.pipeline import build
from moepack.convert.plan import Packing, plan_pack, understand
from moepack.convert.recipe import Recipe
from moepack.layout.formats import AffineFormat, Format, GridFormat
from moepack.layout.plan import PackPlan
from moepack.layout.reader import Pack
from moepack.layout.record import RecordLayout
from moepack.layout.writer import PackWriter
from moepack.manifests import schema
from moepack.manifests.manifest import read_manifest
from moepack.manifests.progress import Progress, Silent

PLAIN = ("--expert-format", "affine2-g64")  # to the command line what build_pack does unless told otherwise


def build_pack(
    checkpoint: Path,
    target: Path,
    *,
    expert_format: str = "affine2-g64",
    method: str = "mse",
    trunk: str = "source",
    jobs: int = 2,
    progress: Progress | None = None,
) -> Packing:
    """Pack the checkpoint in a directory into `target`; what had been planned is returned."""
    return build_with(checkpoint, target, Recipe.parse(expert_format, method, trunk), jobs=jobs, progress=progress)


def build_with(
    checkpoint: Path, target: Path, recipe: Recipe, *, jobs: int = 2, progress: Progress | None = None
) -> Packing:
    """The same with a recipe of any kind."""
    with Checkpoint.open(str(checkpoint)) as opened:
        packing = plan_pack(understand(opened), recipe)
        build(packing, target, jobs=jobs, progress=progress or Silent())
    return packing


def with_random_experts(pack: Path, plan: PackPlan, target: Path, formats: Mapping[str, Format]) -> None:
    """Write `pack`, made from `plan`, again at `target`, with random experts in other formats (of each projection)."""
    layout = RecordLayout.of(plan.records[0].shape, formats)
    random = np.random.default_rng(0)
    with (
        Pack.open(pack) as source,
        PackWriter.open(target, replace(plan, records=(layout,) * len(plan.records), source=hashed(pack))) as writer,
    ):
        with writer.trunk() as trunk:
            for spec in plan.trunk:
                trunk.write_blocks(spec.name, [source.trunk.read(spec.name)])
        for layer in writer.missing_layers():
            with writer.layer(layer) as sink:
                for _ in range(plan.model.num_experts):
                    sink.append(random_record(random, layout))
        writer.commit()


def hashed(pack: Path) -> schema.Source:
    """What the manifest of `pack` says of its checkpoint, with every digest."""
    return read_manifest(pack).source


def random_record(random: np.random.Generator, layout: RecordLayout) -> np.ndarray:
    """An expert's record of random codes and grids; its weights are about 0.02."""
    record = np.zeros(layout.stride, np.uint8)
    for component in layout.components:
        format_ = layout.formats[component.name.partition(".")[0]]
        scale = 0.02 / float(format_.table.std()) if isinstance(format_, GridFormat) else 0.01
        piece = random.integers(0, 256, component.size, dtype=np.uint8)
        if component.dtype == "bfloat16":
            piece = (random.normal(size=component.shape) * scale).astype(ml_dtypes.bfloat16).reshape(-1).view(np.uint8)
        record[component.offset : component.offset + component.size] = piece
    return record


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [rows, cols] -> uint32 [rows, words], each row one little-endian bit stream."""
    planes = (codes[..., None].astype(np.uint8) >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(planes.reshape(len(codes), -1), axis=-1, bitorder="little").view("<u4")


def truncated(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 by dropping the low 16 bits."""
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)


def reference_minmax(weights: np.ndarray, format: AffineFormat) -> bytes:
    """Codes, scales and biases of one matrix as the reference system chooses them, in the order of a record."""
    groups = weights.astype(np.float32).reshape(len(weights), -1, format.group_size)
    low, high = groups.min(-1), groups.max(-1)
    scales = (high - low) / np.float32(2**format.bits - 1)
    steps = np.where(scales == 0, np.float32(1), scales)
    codes = np.clip(np.rint((groups - low[..., None]) / steps[..., None]), 0, 2**format.bits - 1)
    words = pack_codes(codes.reshape(len(weights), -1), format.bits)
    return b"".join(part.tobytes() for part in (words, truncated(scales), truncated(low)))


def reference_record(gate: np.ndarray, up: np.ndarray, down: np.ndarray, format: AffineFormat) -> bytes:
    """A whole record without its padding: gate, up, down."""
    return b"".join(reference_minmax(matrix, format) for matrix in (gate, up, down))
