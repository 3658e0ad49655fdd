"""What a launch of each kernel is given: its grid and its constants, as the doc comments in kernels/metal say.

The numbers at the top are those of the kernels' headers; a test holds them together.
"""

import struct
from dataclasses import dataclass

from .device import LANES, Size

SIMD_GROUPS = 8
THREADS = LANES * SIMD_GROUPS
PIECE = 16
TILE = LANES * PIECE
ROWS_AT_ONCE = SIMD_GROUPS * 4
MATMUL_THREADS = 4 * LANES
OUT_ROWS = 64
TOKEN_BLOCK = 8
RULE_THREADS = 4 * LANES
QUERIES_AT_ONCE = SIMD_GROUPS * 4
CHOICE_BLOCK = 4096
ARENAS = 4


@dataclass(frozen=True)
class MatrixPlace:
    """Where a matrix's parts lie in a buffer, in bytes; parts that its format lacks are 0."""

    weight: int
    scales: int
    biases: int
    grids: int
    rows: int
    cols: int

    def moved(self, by: int) -> "MatrixPlace":
        """The same, so many bytes further on."""
        return MatrixPlace(self.weight + by, self.scales + by, self.biases + by, self.grids + by, self.rows, self.cols)

    @property
    def packed(self) -> bytes:
        """struct Matrix."""
        return struct.pack("<4Q2I", self.weight, self.scales, self.biases, self.grids, self.rows, self.cols)

    def product(self, out: int) -> bytes:
        """struct Product: results begin at float `out` of the launch's array."""
        return self.packed + struct.pack("<Q", out)

    def batch(self, count: int) -> bytes:
        """struct Batch, of `count` tokens."""
        return self.packed + struct.pack("<I4x", count)


@dataclass(frozen=True)
class AttentionChunk:
    """Tokens of a sequence from `position` on, whose positions are gone through in `splits` parts."""

    position: int
    tokens: int
    splits: int
    eps: float

    @property
    def packed(self) -> bytes:
        """struct Chunk."""
        span = _ceil_div(self.position + self.tokens, self.splits)
        return struct.pack("<4If", self.position, self.tokens, span, self.splits, self.eps)


def slot(arena: int, offset: int) -> bytes:
    """struct Slot: an expert's record lies at `offset` of an arena."""
    return struct.pack("<Q2I", offset, arena, 0)


def combination(k: int, hidden: int) -> bytes:
    """struct Combination."""
    return struct.pack("<2I", k, hidden)


def norm(width: int, eps: float) -> bytes:
    """struct Norm."""
    return struct.pack("<If", width, eps)


def gated_norm(width: int, eps: float, rows: int) -> bytes:
    """struct GatedNorm."""
    return struct.pack("<IfI", width, eps, rows)


def choice(count: int, k: int, *, first: bool) -> bytes:
    """struct Choice; `first`: numbers are called by their places."""
    return struct.pack("<3I", count, k, first)


def count(number: int) -> bytes:
    """A number of tokens, of elements, or a width."""
    return struct.pack("<I", number)


def products_grid(rows: int, tokens: int, products: int = 1) -> Size:
    """matvec, matvec_add, matvec_gated (one product): `rows` of the tallest matrix."""
    return _ceil_div(rows, ROWS_AT_ONCE), tokens, products


def experts_grid(rows: int, k: int) -> Size:
    """experts_gated (rows of gate) and experts_down (rows of down)."""
    return _ceil_div(rows, ROWS_AT_ONCE), k, 1


def many_products_grid(rows: int, tokens: int, token_blocks: int) -> Size:
    """matmul and its kin."""
    return _ceil_div(rows, OUT_ROWS), _ceil_div(tokens, TOKEN_BLOCK * token_blocks), 1


def embed_grid(cols: int, tokens: int) -> Size:
    """embed."""
    return _ceil_div(cols, TILE), tokens, 1


def threads_grid(threads: int, rows: int = 1) -> Size:
    """A thread for each element: combine (hidden), swiglu (elements), add_gated (width, tokens), delta_convolve."""
    return _ceil_div(threads, THREADS), rows, 1


def groups_grid(rows: int) -> Size:
    """A SIMD group for each row: gated_rms_norm, attention_join (heads), attention_prepare (all heads)."""
    return _ceil_div(rows, SIMD_GROUPS), 1, 1


def rows_grid(rows: int) -> Size:
    """A threadgroup for each row: rms_norm, route."""
    return rows, 1, 1


def attention_grid(tokens: int, num_heads: int, num_kv_heads: int, splits: int) -> Size:
    """attention."""
    return _ceil_div(tokens * (num_heads // num_kv_heads), QUERIES_AT_ONCE), num_kv_heads, splits


def delta_norm_grid(num_key_heads: int, tokens: int) -> Size:
    """delta_norm."""
    return _ceil_div(2 * num_key_heads, SIMD_GROUPS), tokens, 1


def rule_grid(value_head_dim: int, num_value_heads: int) -> Size:
    """delta_rule."""
    return _ceil_div(value_head_dim, LANES), num_value_heads, 1


def choice_grid(numbers: int) -> Size:
    """top_k."""
    return _ceil_div(numbers, CHOICE_BLOCK), 1, 1


def _ceil_div(count: int, by: int) -> int:
    return -(-count // by)
