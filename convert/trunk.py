"""The trunk: which tensors a pack stores, in which format, and how each is made from the checkpoint's.

Everything is streamed in blocks of rows, so the largest embedding costs no more memory than a small matrix.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..layout.formats import AffineFormat
from ..layout.tensorfile import ARRAY_DTYPES, TensorSpec
from ..quantize.affine import AffineMatrix, dequantize
from ..quantize.methods import NonFiniteWeightError, quantize
from .checkpoint import Checkpoint
from .families.family import Role
from .finite import not_finite, require_finite
from .matrices import read_rows
from .parallel import in_order
from .recipe import TRUNK_METHOD, Recipe
from .tensors import FLOATS, Affine, Encoding, Gptq, Plain, Scratch, TrunkEntry, Weights, format_of

BLOCK_BYTES = 8 * 1024 * 1024  # of a tensor being copied
BLOCK_WEIGHTS = 2 * 1024 * 1024  # of a matrix being recoded
_NORMS = (Role.NORM, Role.CENTERED_NORM)

Blocks = Iterator[np.ndarray]


@dataclass(frozen=True)
class TrunkItem:
    """A trunk tensor to be stored as `specs`; `target` is a format, a float dtype tag, or None to copy the bytes."""

    entry: TrunkEntry
    target: AffineFormat | str | None
    specs: tuple[TensorSpec, ...]

    @property
    def format(self) -> AffineFormat | None:
        """The format in which it will be stored, None for floats."""
        if self.target is None:
            return format_of(self.entry.encoding)
        return self.target if isinstance(self.target, AffineFormat) else None


def plan_item(entry: TrunkEntry, recipe: Recipe) -> TrunkItem:
    """What becomes of one trunk tensor under a recipe."""
    tensor, encoding = entry.tensor, entry.encoding
    target = recipe.trunk_target(tensor.role, tensor.shape[-1], encoding)
    if tensor.role in _NORMS:
        return TrunkItem(entry, "F32", (TensorSpec(tensor.name, "F32", tensor.shape),))
    if isinstance(target, AffineFormat):
        return TrunkItem(entry, target, _affine_specs(entry, target, "BF16"))
    if target == "source" and (stored := format_of(encoding)):
        return TrunkItem(entry, None, _affine_specs(entry, stored, _scale_dtype(encoding)))
    dtype = _float_dtype(encoding, tensor.role) if target == "source" else "BF16"
    copied = isinstance(encoding, Plain) and encoding.dtype == dtype
    return TrunkItem(entry, None if copied else dtype, (TensorSpec(tensor.name, dtype, tensor.shape),))


def _scale_dtype(encoding: Encoding) -> str:
    """GPTQ's biases are products that 16 bits do not hold."""
    return "F32" if isinstance(encoding, Gptq) else encoding.dtype


def _float_dtype(encoding: Encoding, role: Role) -> str:
    """What floats remain when a recipe asks for the source's: FP8 and reordered GPTQ codes have none of their own.

    bfloat16 is as exact as a float of 4 significant bits needs; a router keeps all that its product has.
    """
    if isinstance(encoding, Plain):
        return encoding.dtype
    return "F32" if role is Role.ROUTER else "BF16"


def _affine_specs(entry: TrunkEntry, format: AffineFormat, dtype: str) -> tuple[TensorSpec, ...]:
    rows, cols = entry.tensor.shape
    stem, groups = entry.tensor.stem, (rows, format.groups(cols))
    return (
        TensorSpec(f"{stem}.weight", "U32", (rows, format.words(cols))),
        TensorSpec(f"{stem}.scales", dtype, groups),
        TensorSpec(f"{stem}.biases", dtype, groups),
    )


def trunk_blocks(items: Sequence[TrunkItem], checkpoint: Checkpoint, jobs: int) -> dict[str, Blocks]:
    """Of every tensor to be stored, by name, its blocks of rows from top to bottom; nothing is read until taken.

    A quantized matrix's scales and biases are there once its codes have been taken, which come first in a pack.
    Taking raises CorruptInputError naming the tensor if a weight is not finite.
    """
    return {spec.name: blocks for item in items for spec, blocks in _item_blocks(item, checkpoint, jobs)}


def _item_blocks(item: TrunkItem, checkpoint: Checkpoint, jobs: int) -> Iterator[tuple[TensorSpec, Blocks]]:
    if item.target is None and isinstance(item.entry.encoding, Gptq):
        return _translated(item, checkpoint, jobs)
    if item.target is None:
        return _copied(item, checkpoint)
    if isinstance(item.target, AffineFormat):
        return _in_parts(item, _recoded(item, item.target, checkpoint, jobs))
    return iter([(item.specs[0], _floats(item, ARRAY_DTYPES[item.target], checkpoint, jobs))])


def _copied(item: TrunkItem, checkpoint: Checkpoint) -> Iterator[tuple[TensorSpec, Blocks]]:
    encoding = item.entry.encoding
    names = [encoding.stored]
    if isinstance(encoding, Affine):
        names += [encoding.scales, encoding.biases]
    for spec, name in zip(item.specs, names, strict=True):
        yield spec, _copy(spec, name, checkpoint)


def _copy(spec: TensorSpec, stored: str, checkpoint: Checkpoint) -> Blocks:
    """The tensor `stored` as it is, but in the shape of `spec` (a convolution loses its axis of length 1)."""
    tail = checkpoint.entries[stored].shape[1:]
    for first, rows in _row_blocks(spec.shape, BLOCK_BYTES // ARRAY_DTYPES[spec.dtype].itemsize):
        block = np.empty((rows, *tail), ARRAY_DTYPES[spec.dtype])
        checkpoint.read_into(stored, block, first)
        if spec.dtype in FLOATS:
            require_finite(block, _name(stored, checkpoint))
        yield block.reshape(rows, *spec.shape[1:])


def _floats(item: TrunkItem, dtype: np.dtype[Any], checkpoint: Checkpoint, jobs: int) -> Blocks:
    """Floats, or codes made floats again, shifted and rounded once to `dtype`."""
    entry = item.entry

    def convert(block: tuple[int, int]) -> np.ndarray:
        weights = _read(entry.encoding, checkpoint, item.entry.tensor.shape, block)
        values = dequantize(weights) if isinstance(weights, AffineMatrix) else weights.astype(np.float32)
        return (values + np.float32(entry.shift)).astype(dtype) if entry.shift else values.astype(dtype)

    for converted in in_order(convert, _row_blocks(item.specs[0].shape, BLOCK_WEIGHTS), jobs=jobs):
        require_finite(converted, _name(entry.encoding.stored, checkpoint))
        yield converted


def _in_parts(item: TrunkItem, matrices: Iterator[AffineMatrix]) -> Iterator[tuple[TensorSpec, Blocks]]:
    """Codes as they come; scales and biases, which are much fewer, are kept until it is their turn."""
    codes, scales, biases = item.specs
    kept_scales: deque[np.ndarray] = deque()
    kept_biases: deque[np.ndarray] = deque()

    def code_blocks() -> Blocks:
        for matrix in matrices:
            kept_scales.append(matrix.scales)
            kept_biases.append(matrix.biases)
            yield matrix.codes

    yield codes, code_blocks()
    yield scales, _drained(kept_scales)
    yield biases, _drained(kept_biases)


def _drained(kept: deque[np.ndarray]) -> Blocks:
    while kept:
        yield kept.popleft()


def _recoded(item: TrunkItem, format: AffineFormat, checkpoint: Checkpoint, jobs: int) -> Iterator[AffineMatrix]:
    encoding, shape = item.entry.encoding, item.entry.tensor.shape

    def recode(block: tuple[int, int]) -> AffineMatrix:
        try:
            return quantize(_read(encoding, checkpoint, shape, block), format, TRUNK_METHOD)
        except NonFiniteWeightError as error:
            row = block[0] + error.row
            raise not_finite(f"{_name(encoding.stored, checkpoint)}, row {row},") from None

    return in_order(recode, _row_blocks(shape, BLOCK_WEIGHTS), jobs=jobs)


def _translated(item: TrunkItem, checkpoint: Checkpoint, jobs: int) -> Iterator[tuple[TensorSpec, Blocks]]:
    """Codes that a checkpoint stores otherwise than a pack, and their scales and biases; nothing is rounded.

    Each of the three is read by itself, so that one can be had without the others.
    """
    for spec, part in zip(item.specs, ("codes", "scales", "biases"), strict=True):
        yield spec, _translated_part(item, part, checkpoint, jobs)


def _translated_part(item: TrunkItem, part: str, checkpoint: Checkpoint, jobs: int) -> Blocks:
    encoding, shape = item.entry.encoding, item.entry.tensor.shape

    def translate(block: tuple[int, int]) -> np.ndarray:
        matrix = _read(encoding, checkpoint, shape, block)
        values: np.ndarray = getattr(matrix, part)
        return values

    return in_order(translate, _row_blocks(shape, BLOCK_WEIGHTS), jobs=jobs)


def _read(encoding: Encoding, checkpoint: Checkpoint, shape: Sequence[int], block: tuple[int, int]) -> Weights:
    """Rows of a trunk tensor, freshly allocated."""
    first, rows = block
    return read_rows(checkpoint, encoding, (rows, *shape[1:]), first, Scratch(), "block")


def _row_blocks(shape: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """(first row, number of rows) of blocks of about `most` elements that cover a tensor."""
    step = max(1, most // math.prod(shape[1:]))
    for first in range(0, shape[0], step):
        yield first, min(step, shape[0] - first)


def _name(stored: str, checkpoint: Checkpoint) -> str:
    return f"{checkpoint.home(stored)}: tensor {stored!r}"
