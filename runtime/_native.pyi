"""The CPU kernels and the readers. Arrays are C-contiguous float32 unless a type says otherwise; outputs come last.

Every function releases the GIL while it computes. It raises TypeError for an array of another type or not contiguous,
for no array is ever copied, and ValueError when shapes do not fit.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Bytes = NDArray[np.uint8]

class Pool:
    """`threads` threads, the caller's included, that share out a kernel's rows, heads or tokens."""

    def __init__(self, threads: int) -> None: ...

class ReadPool:
    """Threads that read byte ranges of files into arrays, and hand out what has arrived."""

    def __init__(self, threads: int) -> None: ...
    def submit(
        self,
        ticket: int,
        fd: int,
        offset: int,
        to: list[Bytes],
        *,
        pieces: int = 1,
        urgent: bool = True,
        forget: bool = False,
    ) -> None:
        """Start filling the arrays in `to`, one after the other, from `offset` of `fd` on.

        The first has the number `ticket`, the next ones those after it. They must outlive the read. `pieces` threads
        share it; reads that are not urgent wait until no urgent one is queued or under way; `forget` drops the pages
        from the system's cache.
        """

    def hurry(self, ticket: int) -> None:
        """Make a read urgent, unless it is under way or over."""
    def cancel(self, ticket: int) -> bool:
        """Give up a read that is not under way yet, all its tickets; False if it is, or is over."""
    def next(self) -> tuple[int, int, int] | None:
        """Wait for any array that is filled: (ticket, bytes read, errno or 0); None once the pool is closed.

        Fewer bytes without errno: the file ended.
        """
    def abandon(self) -> None:
        """Give up every read, and wait for those under way; none of their tickets is handed out any more."""
    def close(self) -> None:
        """Give up every read and end the threads."""
    def busy_seconds(self) -> float:
        """How long at least one read has been under way."""

class Matrix:
    """A weight matrix [rows, cols] as stored; keeps its arrays alive."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    def exact(self) -> Matrix:
        """The same weights, of which products never see rounded activations."""

class Activations:
    """Rows of activations for products: as they are, and rounded to fifteen bits once a matrix multiplies those.

    Quantized matrices multiply rounded ones unless they or the activations are exact. `x` is not copied: it must not
    change while this is used.
    """

    def __init__(self, x: Floats, exact: bool = False) -> None: ...
    @property
    def count(self) -> int: ...

class Levels:
    """The levels of a grid format, for the kernels, from its table [grids, levels]."""

    def __init__(self, table: NDArray[np.int16]) -> None: ...

class Projection:
    """How a projection is stored and at which offsets of a record its components lie."""

class RecordViews:
    """Where gate, up and down lie in a record of `size` bytes."""

    def __init__(self, hidden: int, intermediate: int, projections: list[Projection], size: int) -> None: ...
    @property
    def hidden(self) -> int: ...

class AttentionShape: ...
class DeltaShape: ...

def instruction_set() -> str:
    """Which run here: "avx512vnni", "avx512", "avx2", "neondot", "neon" or "baseline"; MOEPACK_ISA forces one."""

def float_matrix(data: Bytes, dtype: str, rows: int, cols: int) -> Matrix:
    """A "BF16", "F16" or "F32" matrix from its flat bytes."""

def affine_matrix(
    codes: Bytes, scales: Bytes, biases: Bytes, dtype: str, bits: int, group: int, rows: int, cols: int
) -> Matrix:
    """An affine matrix from its flat bytes; scales and biases are of type `dtype`."""

def grid_matrix(codes: Bytes, grids: Bytes, scales: Bytes, levels: Levels, group: int, rows: int, cols: int) -> Matrix:
    """A matrix in a grid format from its flat bytes; one bf16 scale per row."""

def affine_projection(bits: int, group: int, codes: int, scales: int, biases: int) -> Projection: ...
def grid_projection(levels: Levels, group: int, codes: int, grids: int, scales: int) -> Projection: ...
def attention_shape(heads: int, kv_heads: int, head_dim: int, rotary_dims: int, eps: float) -> AttentionShape: ...
def delta_shape(
    key_heads: int, value_heads: int, key_dim: int, value_dim: int, conv_kernel: int, eps: float
) -> DeltaShape: ...
def matmul(pool: Pool, matrices: list[Matrix], x: Activations, ys: list[Floats]) -> None:
    """ys[i][t] = matrices[i] x[t], all matrices at once."""

def swiglu(pool: Pool, gate: Matrix, up: Matrix, x: Activations, h: Floats) -> None:
    """h[t] = silu(gate x[t]) * (up x[t])."""

def embed(table: Matrix, ids: Ints, y: Floats) -> None:
    """y[t] = table[ids[t]]."""

def rms_norm(pool: Pool, x: Floats, weight: Floats, eps: float, y: Floats) -> None:
    """y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight."""

def add_gated(pool: Pool, x: Floats, gate: Floats, y: Floats) -> None:
    """y[t] += sigmoid(gate[t]) * x[t]; gate is [tokens, 1]."""

def route(pool: Pool, logits: Floats, ids: Ints, weights: Floats) -> None:
    """The k largest of softmax(logits), renormalised, largest first, ties to the lower id; outputs [tokens, k]."""

def expert(
    pool: Pool, layout: RecordViews, record: Bytes, x: Activations, tokens: Ints, weights: Floats, y: Floats
) -> None:
    """y[tokens[i]] += weights[i] * down(silu(gate x) * (up x)) with x = x[tokens[i]]."""

def experts(
    pool: Pool,
    layout: RecordViews,
    records: Sequence[Bytes],
    tokens: Sequence[Sequence[int]],
    x: Activations,
    y: Floats,
) -> None:
    """y[0], y[1], ... = down(silu(gate x) * (up x)) of record 0 for x[tokens[0]], then of record 1, and so on."""

def combine(pool: Pool, parts: Floats, came: Sequence[int], ids: Ints, weights: Floats, y: Floats) -> None:
    """y[t] += the sum over t's experts `ids[t]`, ascending, of their `weights[t]` * part.

    Part i is that of token came[i] >> 32 and expert came[i] & (2^32 - 1).
    """

def rotation(position: int, frequencies: Floats, cos: Floats, sin: Floats) -> None:
    """cos and sin of (position + t) * frequencies, [tokens, len(frequencies)]."""

def attention(
    pool: Pool,
    shape: AttentionShape,
    position: int,
    query_gate: Floats,
    key: Floats,
    value: Floats,
    query_norm: Floats,
    key_norm: Floats,
    cos: Floats,
    sin: Floats,
    keys: Floats,
    values: Floats,
    out: Floats,
) -> None:
    """Norms, rotation, cache rows position.. of keys and values, causal softmax attention, sigmoid gate."""

def delta(
    pool: Pool,
    shape: DeltaShape,
    mixed: Floats,
    gate: Floats,
    beta: Floats,
    decay: Floats,
    conv: Floats,
    log_decay: Floats,
    decay_bias: Floats,
    norm: Floats,
    conv_state: Floats,
    state: Floats,
    out: Floats,
) -> None:
    """Convolution, gated delta rule and gated norm, token by token; advances conv_state and state."""

def bound_heap() -> bool:
    """Make this process's allocator return large blocks when they are freed; False where it has no such settings."""

def trim_heap() -> None:
    """Return what the allocator holds and nobody uses; does nothing where it has no such call."""

def lock(memory: Bytes) -> int:
    """Keep `memory` from being swapped out until it is unmapped: 0, or the errno of the system's refusal."""

def read_bandwidth(pool: Pool, memory: Bytes) -> float:
    """Bytes per second at which all of the pool's threads together read `memory` once, at least a megabyte."""
