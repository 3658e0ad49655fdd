"""GPTQ checkpoints: codes in `qweight`, zeros in `qzeros`, `scales`, and each input's group in `g_idx`.

As AutoGPTQ, GPTQModel and optimum write them: everything is transposed, weight[out, in] = scale[g, out] *
(code[in, out] - zero[g, out]) with g = g_idx[in]. Codes are packed along the inputs and zeros along the outputs, low
bits of 32-bit words first, so transposed words are already an affine matrix's codes, and with scales of 16 bits the
matrix is exact with float32 scales and biases. Inputs ordered otherwise (`desc_act`) make it floats.

What the stored zeros mean: with `sym` the zero is the midpoint by definition, and one less or itself may be stored
(Qwen's Int4 checkpoints store 8 under the name of the format that stores 7). Otherwise `checkpoint_format` decides;
of "gptq" whole words are made larger by one in every code, because GPTQModel made them smaller so, borrows included.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..layout.formats import GROUP_SIZES, AffineFormat
from ..layout.tensorfile import ARRAY_DTYPES
from ..manifests.errors import CorruptInputError, UnsupportedError
from ..quantize.affine import AffineMatrix, dequantize
from .checkpoint import Checkpoint
from .families.settings import Settings
from .finite import require_finite
from .shelf import Shelf
from .tensors import Gptq, Plain, Scratch, Weights, ZeroPoint

METHOD = "gptq"
BITS = (2, 4, 8)
SCALES = ("F16", "BF16")  # so that scale * zero is exact in float32
INPUTS = 32  # a multiple of which every packer wants
WORD = np.dtype("<u4")
ZERO_POINTS = {"gptq": ZeroPoint.LESS_ONE, "gptq_v2": ZeroPoint.AS_STORED}


@dataclass(frozen=True)
class GptqMatrices:
    """Takes matrices off the shelf, as GPTQ codes or as floats, whichever are there."""

    shelf: Shelf
    bits: int
    group_size: int
    zero_point: ZeroPoint

    @classmethod
    def declared(cls, quantization: Mapping[str, Any], shelf: Shelf) -> "GptqMatrices":
        """As `quantization_config` says. Raises UnsupportedError for bits, groups or a packing that is not read."""
        bits, group_size = quantization.get("bits"), quantization.get("group_size")
        if bits not in BITS or type(bits) is not int:
            raise UnsupportedError(f"config.json has GPTQ codes of bits = {bits!r:.40}; readable are 2, 4 and 8")
        if group_size not in GROUP_SIZES or type(group_size) is not int:
            readable = ", ".join(map(str, GROUP_SIZES))
            raise UnsupportedError(f"config.json has GPTQ group_size = {group_size!r:.40}; readable are {readable}")
        return cls(shelf, bits, group_size, _zero_point(quantization))

    def __contains__(self, name: str) -> bool:
        return name in self.shelf or _part(name, "qweight") in self.shelf

    def take(self, name: str, shape: tuple[int, ...]) -> Plain | Gptq:
        """The matrix `name`. Raises CorruptInputError or UnsupportedError naming the tensor that is amiss."""
        if _part(name, "qweight") not in self.shelf:
            return self.shelf.take_plain(name, shape)
        rows, cols = shape
        if cols % INPUTS:
            raise UnsupportedError(f"GPTQ codes of {name!r} have {cols} inputs, which is no multiple of {INPUTS}")
        groups, zero_words = -(-cols // self.group_size), -(-rows * self.bits // 32)
        codes = self.shelf.take(_part(name, "qweight"), ("I32",), (cols * self.bits // 32, rows))
        zeros = self.shelf.take(_part(name, "qzeros"), ("I32",), (groups, zero_words))
        scales = self.shelf.take(_part(name, "scales"), SCALES, (groups, rows))
        order = self.shelf.take(_part(name, "g_idx"), ("I32",), (cols,))
        format_ = AffineFormat(self.bits, self.group_size)
        return Gptq(
            stored=codes.name,
            zeros=zeros.name,
            scales=scales.name,
            order=order.name,
            bits=self.bits,
            group_size=self.group_size,
            zero_point=self.zero_point,
            format=format_ if format_.fits(cols) else None,
            dtype=scales.dtype,
        )

    def take_stack(self, name: str, shape: tuple[int, ...]) -> Plain:
        """The stack of matrices `name`, which are floats: GPTQ has no codes of stacks."""
        return self.shelf.take_plain(name, shape)


def settled(checkpoint: Checkpoint, encoding: Gptq, cols: int) -> Gptq:
    """The encoding once its g_idx has been looked at: without an order, or without a format."""
    plain = _is_plain(_order(checkpoint, encoding, cols), encoding.group_size)
    return replace(encoding, order=None) if plain else replace(encoding, format=None)


def read_rows(
    checkpoint: Checkpoint, encoding: Gptq, shape: tuple[int, int], first: int, scratch: Scratch, key: str
) -> Weights:
    """Rows (outputs) from `first` on, of `shape`: an affine matrix if the groups are in order, else float32.

    Affine matrices are kept in `scratch` under `key`. Raises CorruptInputError naming the tensor whose content is
    no number or no group.
    """
    rows, cols = shape
    words = scratch.array(f"{key}.qweight", (cols * encoding.bits // 32, rows), WORD)
    checkpoint.read_columns_into(encoding.stored, words, first)
    scales = _scales(checkpoint, encoding, (-(-cols // encoding.group_size), rows), first)
    zeros = _zeros(checkpoint, encoding, (len(scales), rows), first)
    order = _order(checkpoint, encoding, cols)
    if encoding.format is None or not _is_plain(order, encoding.group_size):
        return _floats(words, scales, zeros, order, encoding.bits)
    matrix = scratch.affine(key, shape, encoding.format, "F32")
    matrix.codes[...] = words.T
    matrix.scales[...] = scales.T
    np.multiply(-scales.T, zeros.T, out=matrix.biases)
    return matrix


def _floats(words: np.ndarray, scales: np.ndarray, zeros: np.ndarray, order: np.ndarray, bits: int) -> np.ndarray:
    """scale * (code - zero), float32 [rows, cols]; exact, as every factor has few bits."""
    format_, rows, cols = AffineFormat(bits, INPUTS), words.shape[1], len(order)
    ones = np.ones((rows, format_.groups(cols)), np.float32)
    weights = dequantize(AffineMatrix(format_, np.ascontiguousarray(words.T), ones, np.zeros_like(ones)))
    weights -= np.take(np.ascontiguousarray(zeros.T), order, axis=1)
    weights *= np.take(np.ascontiguousarray(scales.T), order, axis=1)
    return weights


def _zero_point(quantization: Mapping[str, Any]) -> ZeroPoint:
    format_ = quantization.get("checkpoint_format") or "gptq"
    if format_ not in ZERO_POINTS:
        readable = " and ".join(ZERO_POINTS)
        raise UnsupportedError(f"config.json has checkpoint_format = {format_!r:.40}; readable are {readable}")
    return ZeroPoint.MIDPOINT if Settings(quantization).flag("sym", default=True) else ZERO_POINTS[format_]


def _part(name: str, part: str) -> str:
    return f"{name.removesuffix('.weight')}.{part}"


def _scales(checkpoint: Checkpoint, encoding: Gptq, shape: tuple[int, int], first: int) -> np.ndarray:
    scales = np.empty(shape, ARRAY_DTYPES[encoding.dtype])
    checkpoint.read_columns_into(encoding.scales, scales, first)
    require_finite(scales, _name(checkpoint, encoding.scales))
    return scales.astype(np.float32)


def _zeros(checkpoint: Checkpoint, encoding: Gptq, shape: tuple[int, int], first: int) -> np.ndarray:
    """The zeros, float32 [groups, rows]."""
    groups, rows = shape
    bits, per_word = encoding.bits, 32 // encoding.bits
    first_word, end_word = first // per_word, -(-(first + rows) // per_word)
    words = np.empty((groups, end_word - first_word), WORD)
    checkpoint.read_columns_into(encoding.zeros, words, first_word)
    if encoding.zero_point is ZeroPoint.LESS_ONE:
        words += np.uint32((2**32 - 1) // (2**bits - 1))  # one in every code
    unpacked = (words[..., None] >> np.arange(0, 32, bits, dtype=np.uint32)) & np.uint32(2**bits - 1)
    skipped = first - first_word * per_word
    zeros = unpacked.reshape(groups, -1)[:, skipped : skipped + rows]
    if encoding.zero_point is not ZeroPoint.MIDPOINT:
        return zeros.astype(np.float32)
    middle = 2 ** (bits - 1)
    if zeros.min() != zeros.max() or zeros[0, 0] not in (middle - 1, middle):
        raise CorruptInputError(
            f"{_name(checkpoint, encoding.zeros)} holds other zeros than {middle - 1} or {middle} throughout, though"
            " config.json says sym"
        )
    return np.full(shape, middle, np.float32)


def _order(checkpoint: Checkpoint, encoding: Gptq, cols: int) -> np.ndarray:
    """Each input's group, int32 [cols]. Raises CorruptInputError unless each group has as many as it should."""
    size, groups = encoding.group_size, -(-cols // encoding.group_size)
    in_order = np.arange(cols, dtype=np.int32) // size
    if encoding.order is None:
        return in_order
    order = np.empty(cols, np.dtype("<i4"))
    checkpoint.read_into(encoding.order, order)
    if order.min() < 0 or order.max() >= groups:
        raise CorruptInputError(
            f"{_name(checkpoint, encoding.order)} names group {order.max() if order.min() >= 0 else order.min()},"
            f" but there are groups 0 to {groups - 1}; fetch it again"
        )
    if not np.array_equal(np.bincount(order, minlength=groups), np.bincount(in_order)):
        raise CorruptInputError(
            f"{_name(checkpoint, encoding.order)} does not give every group its {size} inputs; fetch it again"
        )
    return order


def _is_plain(order: np.ndarray, group_size: int) -> bool:
    return np.array_equal(order, np.arange(len(order)) // group_size)


def _name(checkpoint: Checkpoint, stored: str) -> str:
    return f"{checkpoint.home(stored)}: tensor {stored!r}"
