"""Making packs in tests, and the reference 2-bit rule in plain numpy."""

from pathlib import Path

import ml_dtypes
import numpy as np

from moepack.convert.checkpoint import Checkpoint
from moepack.convert.pipeline import build
from moepack.convert.plan import Packing, plan_pack, understand
from moepack.convert.recipe import Recipe
from moepack.layout.formats import AffineFormat
from moepack.manifests.progress import Progress, Silent


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
    with Checkpoint.open(str(checkpoint)) as opened:
        packing = plan_pack(understand(opened), Recipe.parse(expert_format, method, trunk))
        build(packing, target, jobs=jobs, progress=progress or Silent())
    return packing


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
