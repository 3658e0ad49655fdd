"""Weight formats: how the codes of a quantized matrix, and what gives them their values, are stored.

A format says how bits are laid out, never how they were chosen (that is a method, in `quantize`). Codes are packed
along a row as one little-endian bit stream, as MLX packs them. FORMAT.md, section 2, is the specification.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..manifests.rules import AFFINE_PARTS, GRID_PARTS
from .books import BOOKS

Family: TypeAlias = Literal["affine", "book"]

BITS = (2, 3, 4, 6, 8)
GROUP_SIZES = (32, 64, 128)
GRID_SHAPES: dict[Family, tuple[tuple[int, int], ...]] = {
    "affine": ((2, 16), (2, 32), (3, 16), (3, 32)),
    "book": ((2, 8), (2, 16), (3, 8), (3, 16)),
}
PART_DTYPES: dict[str, np.dtype[Any]] = {
    "uint32": np.dtype("<u4"),
    "uint8": np.dtype(np.uint8),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

Part: TypeAlias = tuple[str, str, tuple[int, int]]  # the name, dtype and shape of one array of a matrix


@dataclass(frozen=True)
class AffineFormat:
    """`affine{bits}-g{group_size}`: codes of `bits` bits; one scale and one bias per `group_size` inputs."""

    bits: int
    group_size: int

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.group_size not in GROUP_SIZES:
            raise ValueError(f"no affine format has {self.bits} bits and groups of {self.group_size}")

    @classmethod
    def parse(cls, name: str) -> "AffineFormat":
        """The format called `name`, such as "affine2-g64". Raises ValueError for any other text."""
        format_ = parse(name)
        if not isinstance(format_, cls):
            raise ValueError(f"{name!r} is not a plain affine format; one looks like affine2-g64")
        return format_

    @property
    def name(self) -> str:
        """The format's name in recipes and manifests."""
        return f"affine{self.bits}-g{self.group_size}"

    @property
    def divisor(self) -> int:
        """What divides the length of a row: then its groups are whole, and its codes fill whole 32-bit words."""
        return self.group_size

    def fits(self, cols: int) -> bool:
        """Whether a row of `cols` inputs can be stored."""
        return cols % self.divisor == 0

    def words(self, cols: int) -> int:
        """32-bit words of codes in one row of `cols` inputs."""
        return cols * self.bits // 32

    def groups(self, cols: int) -> int:
        """Groups, and so scales and biases, in one row of `cols` inputs."""
        return cols // self.group_size

    def parts(self, rows: int, cols: int) -> tuple[Part, ...]:
        """The arrays of an expert's matrix [rows, cols], in the order of the record."""
        groups = (rows, self.groups(cols))
        codes, scales, biases = AFFINE_PARTS
        return (codes, "uint32", (rows, self.words(cols))), (scales, "bfloat16", groups), (biases, "bfloat16", groups)


@dataclass(frozen=True)
class GridFormat:
    """Codes that pick a level of their group's grid: a weight is that level, an integer, times its row's scale.

    `affine{bits}-g{group_size}s`: a grid is a step and a zero of four bits each (two-level affine).
    `book{bits}-g{group_size}`: a grid is one of sixteen fixed codebooks (see `books`).
    """

    family: Family
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        if (self.bits, self.group_size) not in GRID_SHAPES.get(self.family, ()):
            raise ValueError(f"no {self.family} grids have {self.bits} bits and groups of {self.group_size}")

    @property
    def name(self) -> str:
        """The format's name in recipes and manifests."""
        return f"{self.family}{self.bits}-g{self.group_size}" + ("s" if self.family == "affine" else "")

    @property
    def grid_bits(self) -> int:
        """Bits that say which grid a group uses."""
        return 8 if self.family == "affine" else 4

    @cached_property
    def table(self) -> NDArray[np.int16]:
        """The levels of every grid, int16 [2^grid_bits, 2^bits], ascending; all but the zero grids are increasing."""
        return _two_level_grids(self.bits) if self.family == "affine" else _books(self.bits, self.group_size)

    @property
    def divisor(self) -> int:
        """What divides the length of a row: then its codes fill whole 32-bit words, and its grids whole bytes."""
        return 32

    def fits(self, cols: int) -> bool:
        """Whether a row of `cols` inputs can be stored."""
        return cols % self.divisor == 0

    def words(self, cols: int) -> int:
        """32-bit words of codes in one row of `cols` inputs."""
        return cols * self.bits // 32

    def grid_bytes(self, cols: int) -> int:
        """Bytes that say which grids the groups of one row of `cols` inputs use."""
        return cols * self.grid_bits // (8 * self.group_size)

    def parts(self, rows: int, cols: int) -> tuple[Part, ...]:
        """The arrays of an expert's matrix [rows, cols], in the order of the record."""
        codes, grids, scales = GRID_PARTS
        return (
            (codes, "uint32", (rows, self.words(cols))),
            (grids, "uint8", (rows, self.grid_bytes(cols))),
            (scales, "bfloat16", (rows, 1)),
        )


Format: TypeAlias = AffineFormat | GridFormat
AFFINE_FORMATS = tuple(AffineFormat(bits, group_size) for bits in BITS for group_size in GROUP_SIZES)
GRID_FORMATS = tuple(GridFormat(family, *shape) for family, shapes in GRID_SHAPES.items() for shape in shapes)
FORMATS: tuple[Format, ...] = (*AFFINE_FORMATS, *GRID_FORMATS)
_BY_NAME = {format_.name: format_ for format_ in FORMATS}


def parse(name: str) -> Format:
    """The format called `name`, such as "affine2-g64" or "book2-g8". Raises ValueError for any other text."""
    if name not in _BY_NAME:
        raise ValueError(f"{name!r} is not a weight format; one looks like affine2-g64")
    return _BY_NAME[name]


def bits_per_weight(format: Format, rows: int, cols: int) -> float:
    """Stored bits per weight of a matrix [rows, cols]: codes and all that gives them their values."""
    return 8 * matrix_bytes(format, rows, cols) / (rows * cols)


def matrix_bytes(format: Format, rows: int, cols: int) -> int:
    """Bytes of an expert's matrix [rows, cols]: codes and all that gives them their values."""
    return sum(part_bytes(dtype, shape) for _, dtype, shape in format.parts(rows, cols))


def part_bytes(dtype: str, shape: tuple[int, int]) -> int:
    """Bytes of one array of a matrix."""
    return PART_DTYPES[dtype].itemsize * shape[0] * shape[1]


def _two_level_grids(bits: int) -> NDArray[np.int16]:
    step, zero = (part[:, None] for part in (np.arange(256) & 15, np.arange(256) >> 4))
    codes = 8 * np.arange(2**bits)
    levels: NDArray[np.int16] = (step * (codes - 4 - zero if bits == 2 else codes - 12 - 2 * zero)).astype(np.int16)
    return levels


def _books(bits: int, group_size: int) -> NDArray[np.int16]:
    plain = np.array(BOOKS[bits, group_size], np.int16)
    return np.concatenate([plain, -plain[:, ::-1]])
