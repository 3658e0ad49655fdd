"""FP8 checkpoints: E4M3 floats, and a factor for each block of (mostly) 128 x 128 of them in `<name>_scale_inv`.

As DeepSeek and Qwen publish them and transformers' fine-grained FP8 writes them. Despite its name the factor is a
multiplier: weight = code * factor, rounded once to float32. Blocks at the right and lower edge may be cut short.
Which matrices are FP8 is read off their tensors and checked against config.json's `quantization_config`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..layout.tensorfile import ARRAY_DTYPES
from ..manifests.errors import CorruptInputError, UnsupportedError
from .checkpoint import Checkpoint
from .families.settings import Settings
from .finite import not_finite, require_finite
from .shelf import Shelf
from .tensors import FLOATS, Fp8, Plain, Scratch

METHOD = "fp8"
DTYPE = "F8_E4M3"
FIXED: Mapping[str, Any] = {"fmt": "e4m3", "scale_fmt": "float", "expert_dtype": "fp8"}
MAGNITUDE = np.uint8(0x7F)  # without the sign; all of it set is E4M3's only NaN, and there is no infinity

# An E4M3 float's bits, moved up by 20, are those of the float32 that is 2^-120 times as large, subnormals included.
SHIFT = 20
SIGN_AND_MAGNITUDE = np.uint32(0x87F00000).view(np.int32)
RESCALE = np.float32(2.0**120)


@dataclass(frozen=True)
class Fp8Matrices:
    """Takes matrices off the shelf, as FP8 or as floats. `unconverted` are the modules said to be floats."""

    shelf: Shelf
    block: tuple[int, int]
    unconverted: tuple[str, ...]

    @classmethod
    def declared(cls, quantization: Mapping[str, Any], shelf: Shelf) -> "Fp8Matrices":
        """As `quantization_config` says. Raises UnsupportedError for another kind of FP8 than this."""
        settings = Settings(quantization)
        settings.require(FIXED)
        left = next((key for key in ("modules_to_not_convert", "ignored_layers") if quantization.get(key)), None)
        names = settings.names(left) if left else []
        return cls(shelf, _block(quantization), tuple(map(shelf.canonical, names)))

    def __contains__(self, name: str) -> bool:
        return name in self.shelf

    def take(self, name: str, shape: tuple[int, ...]) -> Plain | Fp8:
        """The matrix `name`. Raises CorruptInputError or UnsupportedError naming a tensor that is amiss."""
        dtype = self.shelf.peek(name).dtype
        if dtype != DTYPE:
            _require_readable(name, dtype)
            return self.shelf.take_plain(name, shape)
        self._require_converted(name.removesuffix(".weight"))
        codes = self.shelf.take(name, (DTYPE,), shape)
        grid = tuple(-(-size // step) for size, step in zip(shape[-2:], self.block, strict=True))
        scales = self.shelf.take(f"{name}_scale_inv", FLOATS, (*shape[:-2], *grid))
        return Fp8(codes.name, scales.name, self.block, scales.dtype)

    def take_stack(self, name: str, shape: tuple[int, ...]) -> Plain | Fp8:
        """The stack of matrices `name`, like `take`."""
        return self.take(name, shape)

    def _require_converted(self, module: str) -> None:
        if any(module == name or module.startswith(f"{name}.") for name in self.unconverted):
            raise CorruptInputError(
                f"module {module!r} is stored as FP8, but config.json lists it among those that are not"
            )


def _block(quantization: Mapping[str, Any]) -> tuple[int, int]:
    block = quantization.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise UnsupportedError(
            f"config.json quantizes to FP8 with weight_block_size = {block!r:.40};"
            " readable is a pair of sizes such as [128, 128]"
        )
    return block[0], block[1]


def _require_readable(name: str, dtype: str) -> None:
    if dtype.startswith("F8_"):
        raise UnsupportedError(f"tensor {name!r} is {dtype}; of the 8-bit floats only {DTYPE} is readable")


def read_rows(
    checkpoint: Checkpoint, encoding: Fp8, shape: tuple[int, int], first: int, scratch: Scratch, key: str
) -> np.ndarray:
    """Rows from `first` on of a matrix, float32 of `shape`; the result and all else is kept in `scratch` under `key`.

    Raises CorruptInputError naming the tensor if a code or a factor is not a number.
    """
    height, above = encoding.block[0], first % encoding.block[0]
    blocks = (above + shape[0] - 1) // height + 1
    return _read(checkpoint, encoding, shape, (first, first // height), (above, blocks), scratch, key)


def read_stacked(
    checkpoint: Checkpoint, encoding: Fp8, shape: tuple[int, int], index: int, scratch: Scratch, key: str
) -> np.ndarray:
    """Matrix `index` of a stack, float32 of `shape`; otherwise like `read_rows`."""
    blocks = -(-shape[0] // encoding.block[0])
    return _read(checkpoint, encoding, shape, (index, index), (0, blocks), scratch, key)


def _read(
    checkpoint: Checkpoint,
    encoding: Fp8,
    shape: tuple[int, int],
    start: tuple[int, int],
    rows: tuple[int, int],
    scratch: Scratch,
    key: str,
) -> np.ndarray:
    """`start`: where to read codes and factors; `rows`: how many rows of the first block are above, and blocks."""
    above, blocks = rows
    codes = scratch.array(f"{key}.fp8", shape, np.dtype(np.uint8))
    scales = scratch.array(f"{key}.scales", (blocks, -(-shape[1] // encoding.block[1])), ARRAY_DTYPES[encoding.dtype])
    checkpoint.read_into(encoding.stored, codes, start[0])
    checkpoint.read_into(encoding.scales, scales, start[1])
    require_finite(scales, f"{checkpoint.home(encoding.scales)}: tensor {encoding.scales!r}")
    weights = scratch.array(f"{key}.weights", shape, np.dtype(np.float32))
    factors = np.repeat(scales.astype(np.float32), encoding.block[1], axis=1)[:, : shape[1]]
    for index, strip in _strips(shape[0], above, encoding.block[0]):
        if (bad := _first_nan(codes[strip])) is not None:
            row = bad + strip.start + (start[0] if len(checkpoint.entries[encoding.stored].shape) == 2 else 0)
            raise not_finite(f"{checkpoint.home(encoding.stored)}: tensor {encoding.stored!r}, row {row},")
        _decode(codes[strip], factors[index], weights[strip])
    return weights


def _strips(rows: int, above: int, height: int) -> Iterator[tuple[int, slice]]:
    """The rows that share each row of blocks, when `above` rows of the first one are not there."""
    for index in range((above + rows - 1) // height + 1):
        yield index, slice(max(0, index * height - above), min(rows, (index + 1) * height - above))


def _first_nan(codes: np.ndarray) -> int | None:
    magnitudes = codes & MAGNITUDE
    if magnitudes.max() < MAGNITUDE:
        return None
    return int((magnitudes == MAGNITUDE).any(axis=1).argmax())


def _decode(codes: np.ndarray, factors: np.ndarray, out: np.ndarray) -> None:
    """E4M3 codes, uint8 [rows, cols], times float32 factors [cols], in place and without the GIL."""
    bits = out.view(np.int32)
    bits[...] = codes.view(np.int8)  # the sign fills all upper bits
    np.left_shift(bits, SHIFT, out=bits)
    np.bitwise_and(bits, SIGN_AND_MAGNITUDE, out=bits)
    np.multiply(out, RESCALE, out=out)
    with np.errstate(over="ignore"):  # an infinite weight is refused by whoever takes it
        np.multiply(out, factors, out=out)
