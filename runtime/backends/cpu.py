"""The CPU backend: numpy arrays as tensors, the native kernels as operations, one persistent thread pool.

Results do not depend on the number of threads nor on which tokens share a call (see kernels/cpu/kernels.h).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from ...layout.formats import GridFormat
from ...layout.matrix import StoredMatrix
from ...layout.record import PROJECTIONS, RecordLayout
from ...manifests import schema
from .. import _native
from ..arena import CACHE_LINE, HOST
from ..decoding import HostPaced, Parts
from ..tally import Tally
from ..trace import Recorder
from .base import (
    AttentionState,
    AttentionWeights,
    DeltaState,
    DeltaWeights,
    Floats,
    Ids,
    Memory,
    Record,
    Routes,
    Stretch,
)
from .rotary import frequencies

_DTYPES: dict[Any, str] = {
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.float16): "F16",
    np.dtype(np.float32): "F32",
}


class CpuBackend:
    """Runs every operation on `threads` CPU threads."""

    lag = 0

    def __init__(self, threads: int, *, exact: bool = False) -> None:
        """`exact`: products see activations as floats, never rounded to fifteen bits."""
        self.name = f"cpu ({_native.instruction_set()})"
        self._pool = _native.Pool(threads)
        self.exact = exact
        self.memory: Memory = HOST
        self.slots: Memory = HOST
        self.tally = Tally()

    def record(self, trace: Recorder) -> None:
        """All time is the caller's."""

    def forward(self) -> AbstractContextManager[None]:
        """Nothing is ever under way once an operation has returned."""
        return nullcontext()

    def section(self, label: str) -> None:
        """A failure here has a traceback."""

    def close(self) -> None:
        """Nothing ever is."""

    def decoding(self, parts: Parts) -> HostPaced:
        """The host sees each router's choice."""
        return HostPaced(self, parts)

    def matrix(self, stored: StoredMatrix) -> _native.Matrix:
        """A native handle that keeps the stored arrays alive; nothing is copied."""
        rows, cols = stored.shape
        format_, dtype = stored.format, _DTYPES[stored.parts[-1].dtype]
        weight, *others = (_bytes(part) for part in stored.parts)
        if format_ is None:
            return _native.float_matrix(weight, dtype, rows, cols)
        first, second = others
        if isinstance(format_, GridFormat):
            return _native.grid_matrix(weight, first, second, _levels(format_), format_.group_size, rows, cols)
        return _native.affine_matrix(weight, first, second, dtype, format_.bits, format_.group_size, rows, cols)

    def exact_matrix(self, stored: StoredMatrix) -> _native.Matrix:
        """See Backend.exact_matrix."""
        return self.matrix(stored).exact()

    def shared(self, x: Floats | _native.Activations) -> _native.Activations:
        """See Backend.shared."""
        return x if isinstance(x, _native.Activations) else _native.Activations(x, exact=self.exact)

    def vector(self, values: Floats) -> Floats:
        """The values, contiguous."""
        return np.ascontiguousarray(values, np.float32)

    def layout(self, layout: RecordLayout) -> _native.RecordViews:
        """The byte offsets of a record's components."""
        places = [_projection(layout, projection) for projection in PROJECTIONS]
        return _native.RecordViews(layout.shape.hidden, layout.shape.intermediate, places, layout.size)

    def zeros(self, rows: int, width: int) -> Floats:
        """A numpy array of zeros."""
        return _on_lines(np.zeros, (rows, width))

    def state(self, *shape: int) -> Floats:
        """A numpy array of zeros, like any other."""
        return _on_lines(np.zeros, shape)

    def reserved(self, rows: int, width: int) -> Floats:
        """Address space only: the system gives memory page by page, when a row is first written."""
        return _on_lines(np.empty, (rows, width))

    def to_host(self, x: Floats) -> Floats:
        """The array itself."""
        return x

    def write(self, to: Floats, values: Floats) -> None:
        """See Backend.write."""
        to[:] = values

    def embed(self, table: _native.Matrix, ids: Ids) -> Floats:
        """Rows `ids`, as float32."""
        out = np.empty((len(ids), table.cols), np.float32)
        _native.embed(table, ids, out)
        return out

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        """See Backend.rms_norm."""
        out = np.empty_like(x)
        _native.rms_norm(self._pool, x, weight, eps, out)
        return out

    def linear(self, x: Floats | _native.Activations, matrix: _native.Matrix) -> Floats:
        """See Backend.linear."""
        return self._products(self.shared(x), matrix)[0]

    def add_linear(self, to: Floats, x: Floats | _native.Activations, matrix: _native.Matrix) -> None:
        """See Backend.add_linear."""
        self.add(to, self.linear(x, matrix))

    def swiglu(self, x: Floats, gate: _native.Matrix, up: _native.Matrix) -> Floats:
        """See Backend.swiglu."""
        rows = self.shared(x)
        out = np.empty((rows.count, gate.rows), np.float32)
        _native.swiglu(self._pool, gate, up, rows, out)
        return out

    def add(self, to: Floats, x: Floats) -> None:
        """See Backend.add."""
        np.add(to, x, out=to)

    def add_gated(self, to: Floats, x: Floats, gate: Floats) -> None:
        """See Backend.add_gated."""
        _native.add_gated(self._pool, x, gate, to)

    def attention(
        self,
        x: Floats,
        weights: AttentionWeights,
        stretches: Sequence[Stretch],
        shape: schema.FullAttention,
        eps: float,
    ) -> Floats:
        """See Backend.attention."""
        sizes = _native.attention_shape(shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.rotary_dims, eps)
        out = np.empty((len(x), shape.num_heads * shape.head_dim), np.float32)
        projected = self._products(self.shared(x), weights.query, weights.key, weights.value)
        norms = (weights.query_norm, weights.key_norm)
        for each in stretches:
            assert isinstance(each.state, AttentionState)
            query, key, value = (part[each.rows] for part in projected)
            turns, cache = _rotation(each.position, each.count, shape), (each.state.keys, each.state.values)
            to = out[each.rows]
            _native.attention(self._pool, sizes, each.position, query, key, value, *norms, *turns, *cache, to)
        return out

    def delta(
        self,
        x: Floats,
        weights: DeltaWeights,
        stretches: Sequence[Stretch],
        shape: schema.LinearAttention,
        eps: float,
    ) -> Floats:
        """See Backend.delta."""
        heads = (shape.num_key_heads, shape.num_value_heads, shape.key_head_dim, shape.value_head_dim)
        sizes = _native.delta_shape(*heads, shape.conv_kernel, eps)
        out = np.empty((len(x), shape.num_value_heads * shape.value_head_dim), np.float32)
        projections = (weights.mixed, weights.gate, weights.beta, weights.decay)
        projected = self._products(self.shared(x), *projections)
        small = (weights.conv, weights.log_decay, weights.decay_bias, weights.norm)
        for each in stretches:
            assert isinstance(each.state, DeltaState)
            mixed, gate, beta, decay = (part[each.rows] for part in projected)
            state, to = (each.state.conv, each.state.memory), out[each.rows]
            _native.delta(self._pool, sizes, mixed, gate, beta, decay, *small, *state, to)
        return out

    def route(self, logits: Floats, k: int) -> Routes:
        """See Backend.route."""
        ids, weights = np.empty((len(logits), k), np.int32), np.empty((len(logits), k), np.float32)
        _native.route(self._pool, logits, ids, weights)
        return Routes(ids, weights)

    def expert(
        self, to: Floats, x: Floats, record: Record, layout: _native.RecordViews, tokens: Ids, weights: Floats
    ) -> None:
        """See Backend.expert."""
        _native.expert(self._pool, layout, record, self.shared(x), tokens, weights, to)

    def experts(
        self,
        x: Floats | _native.Activations,
        records: Sequence[Record],
        layout: _native.RecordViews,
        tokens: Sequence[Sequence[int]],
        to: Floats,
    ) -> None:
        """See HostBackend.experts."""
        _native.experts(self._pool, layout, records, tokens, self.shared(x), to)

    def combine(self, parts: Floats, came: Sequence[int], routes: Routes) -> Floats:
        """See HostBackend.combine."""
        out = np.zeros((len(routes.ids), parts.shape[1]), np.float32)
        _native.combine(self._pool, parts, came, routes.ids, routes.weights, out)
        return out

    def _products(self, x: _native.Activations, *matrices: _native.Matrix) -> list[Floats]:
        """x matrix^T of each matrix, computed together."""
        out = [np.empty((x.count, matrix.rows), np.float32) for matrix in matrices]
        _native.matmul(self._pool, list(matrices), x, out)
        return out


def _rotation(position: int, tokens: int, shape: schema.FullAttention) -> tuple[Floats, Floats]:
    """cos and sin [tokens, rotary_dims / 2], of angles in float32, as in transformers; rounded from float64."""
    turns = frequencies(shape.rotary_dims, shape.rope_theta)
    cos, sin = (np.empty((tokens, len(turns)), np.float32) for _ in range(2))
    _native.rotation(position, turns, cos, sin)
    return cos, sin


def _projection(layout: RecordLayout, projection: str) -> _native.Projection:
    format_ = layout.formats[projection]
    offsets = [part.offset for part in layout.components if part.name.startswith(f"{projection}.")]
    if isinstance(format_, GridFormat):
        return _native.grid_projection(_levels(format_), format_.group_size, *offsets)
    return _native.affine_projection(format_.bits, format_.group_size, *offsets)


@cache
def _levels(format: GridFormat) -> _native.Levels:
    """One for all layers, so that it stays in the caches."""
    return _native.Levels(format.table)


def _on_lines(make: Callable[..., Floats], shape: tuple[int, ...]) -> Floats:
    """An array that starts on a cache line: what is read sixteen floats at a time is then one line, not two."""
    count = prod(shape)
    floats = make(count + CACHE_LINE // 4, np.float32)
    first = -floats.ctypes.data % CACHE_LINE // 4
    return floats[first : first + count].reshape(shape)


def _bytes(array: np.ndarray[Any, np.dtype[Any]]) -> Record:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
