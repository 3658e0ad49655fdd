"""The Metal backend: every operation of the model enqueues kernels; the host waits where it must see a result.

Activations are float32, never rounded. One token's products go row by row (matvec), those of more tokens in tiles
(matmul), which add up in another order: last bits may depend on how a prompt is divided. Nothing is allocated by a
token that comes after a like one. It has never run on Apple hardware.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import ml_dtypes
import numpy as np

from ....layout.formats import Format
from ....layout.matrix import StoredMatrix
from ....layout.record import PROJECTIONS, RecordLayout
from ....manifests import schema
from ....manifests.errors import DeviceError
from ... import _native
from ...decoding import Decoding, Parts
from ...tally import Tally
from ...trace import Recorder
from ..base import AttentionState, AttentionWeights, DeltaState, DeltaWeights, Floats, Ids, Record, Routes, Stretch
from ..rotary import frequencies
from . import launches, library
from .decoding import DevicePaced
from .device import Argument, Buffer, Device, Pipeline
from .library import Build, Kernels
from .memory import SharedMemory, Shelf, Spares, Tensor, Workspace
from .needs import BY_VALUE, LAG, MOST_SPLITS, Extent, activation_bytes
from .work import EXPERTS, Work

SCALARS = {np.dtype(ml_dtypes.bfloat16): "bf16", np.dtype(np.float16): "f16", np.dtype(np.float32): "f32"}
FEW = 4  # tokens whose products go row by row; measured nowhere
TILES = (1, 4)  # blocks of eight tokens in a tile: where one is enough, and where not
NUMBER_BYTES = 4  # of a float, of an expert's number
CHOICE_BYTES = 3 * NUMBER_BYTES  # of one expert that a token chose: its number, its weight, its turn
SPLIT = 128  # positions that are worth a part of one token's attention


@dataclass(frozen=True)
class Matrix:
    """A stored matrix in place: the kernels' name of its type, and where it lies."""

    type: str
    buffer: Buffer
    place: launches.MatrixPlace

    @property
    def rows(self) -> int:
        """Its outputs."""
        return self.place.rows


@dataclass(frozen=True)
class Layout:
    """A layer's records: the build of one token's experts, and each projection's type and place in a record."""

    build: Build
    shape: tuple[int, int]
    projections: Mapping[str, tuple[str, launches.MatrixPlace]]

    def matrix(self, projection: str, buffer: Buffer, offset: int) -> Matrix:
        """A projection of the record at `offset` of a buffer."""
        type_, place = self.projections[projection]
        return Matrix(type_, buffer, place.moved(offset))


@dataclass(frozen=True)
class Choice:
    """Where the router's choice lies: ids, weights and order, each [tokens, K], as kernels take them."""

    ids: Argument
    weights: Argument
    order: Argument


class MetalBackend:
    """Runs every operation on a device, for one model and sequences and chunks of at most an extent."""

    lag = LAG
    exact = True

    def __init__(self, device: Device, model: schema.Model, extent: Extent) -> None:
        """Raises DeviceError if the device gives no memory, UnsupportedError if it refuses a kernel."""
        self.name = f"metal ({device.name})"
        self.device = device
        self.work = Work(device)
        self.memory = SharedMemory(device)
        self.slots = SharedMemory(device)
        self.workspace = Workspace(device, activation_bytes(model, extent))
        self._kernels = Kernels(device)
        self._shelf = Shelf(device)
        self._spares = Spares(device)
        self._model = model
        self._extent = extent
        self._turns = _Turns(self._spares, model.full_attention, extent.context)
        self._choices = device.buffer(CHOICE_BYTES * extent.chunk * extent.experts_per_token, "router's choices")
        self._build(library.plain("combine.metal"), library.plain("norms.metal"))
        self._build(library.router(model, extent.experts_per_token))
        self._build(library.attention(model.full_attention), library.delta(model.linear_attention))

    @property
    def tally(self) -> Tally:
        """See Backend.tally."""
        return self.device.tally

    def record(self, trace: Recorder) -> None:
        """See Backend.record."""
        self.device.trace = trace

    def forward(self) -> AbstractContextManager[None]:
        """See Backend.forward."""
        return self.work.forward()

    def section(self, label: str) -> None:
        """See Backend.section."""
        self.work.section(label)

    def close(self) -> None:
        """See Backend.close."""
        self.work.drop()

    def decoding(self, parts: Parts) -> Decoding:
        """The GPU paces a token's experts; see decoding."""
        return DevicePaced(self, parts)

    def matrix(self, stored: StoredMatrix) -> Matrix:
        """The matrix where it lies; raises ValueError if that is not in this backend's memory."""
        parts = {name: getattr(stored, name) for name in library.PARTS}
        places = {name: self.memory.place(part) for name, part in parts.items() if part is not None}
        buffer = places["weight"][0]
        if any(other is not buffer for other, _ in places.values()):
            raise ValueError("the parts of a matrix lie in several buffers")
        offsets = {name: places[name][1] if name in places else 0 for name in library.PARTS}
        place = launches.MatrixPlace(**offsets, rows=stored.shape[0], cols=stored.shape[1])
        scalar = stored.weight.dtype if stored.format is None else stored.parts[-1].dtype
        type_ = library.matrix_type(stored.format, SCALARS[scalar])
        self._build(library.products(type_), *self._tiled(type_))
        return Matrix(type_, buffer, place)

    def exact_matrix(self, stored: StoredMatrix) -> Matrix:
        """The same: activations are never rounded here."""
        return self.matrix(stored)

    def vector(self, values: Floats) -> Tensor:
        """A copy on the device."""
        floats = np.ascontiguousarray(values, np.float32)
        rows = len(floats) if floats.ndim > 1 else 1
        return Tensor(self._shelf.put(floats.reshape(-1).view(np.uint8)), rows, floats.size // max(1, rows))

    def layout(self, layout: RecordLayout) -> Layout:
        """The places of a record's parts."""
        projections: dict[str, tuple[str, launches.MatrixPlace]] = {
            projection: _projection(layout, projection) for projection in PROJECTIONS
        }
        build = library.experts(layout)
        self._build(build, *(tiled for type_, _ in projections.values() for tiled in self._tiled(type_)))
        return Layout(build, (layout.shape.hidden, layout.shape.intermediate), projections)

    def zeros(self, rows: int, width: int) -> Tensor:
        """In the workspace."""
        out, count = self.tensor(rows, width), rows * width
        self.work.run(self._plain("clear"), launches.threads_grid(count), out.argument, launches.count(count))
        return out

    def state(self, *shape: int) -> Tensor:
        """A buffer of its own, which a later session may get; nothing that interrupts left may be working on it."""
        self.work.drop()
        region = self._spares.region(4 * prod(shape), "state")
        region.buffer.bytes[:] = 0
        return Tensor(region, shape[0], prod(shape[1:]))

    def reserved(self, rows: int, width: int) -> Tensor:
        """The same, of unspecified values."""
        return Tensor(self._spares.region(4 * rows * width, "key/value cache"), rows, width)

    def to_host(self, x: Tensor) -> Floats:
        """A copy, once everything before is done."""
        self.work.finish()
        return x.values.copy()

    def write(self, to: Tensor, values: Floats) -> None:
        """See Backend.write; the GPU is idle then."""
        to.values[:] = values

    def embed(self, table: Matrix, ids: Ids) -> Tensor:
        """See Backend.embed."""
        self.work.section("embedding")
        out = self.tensor(len(ids), table.place.cols)
        embed = self._kernels.of(library.embedding(table.type))["embed"]
        for first in range(0, len(ids), BY_VALUE):
            part, to = ids[first : first + BY_VALUE], out[first : first + BY_VALUE]
            arguments = (table.buffer, table.place.packed, part.astype(np.uint32).tobytes(), to.argument)
            self.work.run(embed, launches.embed_grid(table.place.cols, len(part)), *arguments)
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Backend.rms_norm."""
        out = self.tensor(len(x), x.width)
        arguments = (x.argument, weight.argument, out.argument, launches.norm(x.width, eps))
        self.work.run(self._norms("rms_norm"), launches.rows_grid(len(x)), *arguments)
        return out

    def shared(self, x: Tensor) -> Tensor:
        """There is nothing to prepare."""
        return x

    def linear(self, x: Tensor, matrix: Matrix) -> Tensor:
        """See Backend.linear."""
        return self._products(x, matrix)[0]

    def add_linear(self, to: Tensor, x: Tensor, matrix: Matrix) -> None:
        """See Backend.add_linear."""
        if len(x) <= FEW:
            self._rows("matvec_add", [(matrix, 0)], x, to)
        else:
            self._tiles("matmul_add", matrix, len(x), x.argument, to.argument, matrix.place.batch(len(x)))

    def swiglu(self, x: Tensor, gate: Matrix, up: Matrix) -> Tensor:
        """See Backend.swiglu."""
        if len(x) <= FEW and (gate.type, gate.buffer) == (up.type, up.buffer):
            out = self.tensor(len(x), gate.rows)
            self._rows("matvec_gated", [(gate, 0), (up, 0)], x, out, products=1)
            return out
        return self._gate(*self._products(x, gate, up))

    def add(self, to: Tensor, x: Tensor) -> None:
        """See Backend.add."""
        count = len(x) * x.width
        self.work.run(self._plain("add"), launches.threads_grid(count), x.argument, to.argument, launches.count(count))

    def add_gated(self, to: Tensor, x: Tensor, gate: Tensor) -> None:
        """See Backend.add_gated."""
        arguments = (x.argument, gate.argument, to.argument, launches.count(x.width))
        self.work.run(self._plain("add_gated"), launches.threads_grid(x.width, len(x)), *arguments)

    def attention(
        self,
        x: Tensor,
        weights: AttentionWeights,
        stretches: Sequence[Stretch],
        shape: schema.FullAttention,
        eps: float,
    ) -> Tensor:
        """See Backend.attention."""
        projected = self._products(x, weights.query, weights.key, weights.value)
        queries = self.tensor(len(x), shape.num_heads * shape.head_dim)
        for each in stretches:
            rows = [part[each.rows] for part in projected]
            self._attend(rows, weights, each, shape, eps, queries[each.rows])
        return queries

    def _attend(
        self,
        projected: Sequence[Tensor],
        weights: AttentionWeights,
        stretch: Stretch,
        shape: schema.FullAttention,
        eps: float,
        queries: Tensor,
    ) -> None:
        """One sequence's rows; results take the queries' place."""
        state, tokens, heads, kv_heads = stretch.state, stretch.count, shape.num_heads, shape.num_kv_heads
        assert isinstance(state, AttentionState)
        kernels = self._kernels.of(library.attention(shape))
        splits = _splits(stretch.position + 1) if tokens == 1 else 1
        chunk = launches.AttentionChunk(stretch.position, tokens, splits, eps).packed
        norms, turns = (weights.query_norm, weights.key_norm), self._turns.of(stretch.position, tokens)
        tensors: tuple[Tensor, ...] = (*projected, *norms, *turns, queries, state.keys, state.values)
        grid = launches.groups_grid(tokens * (heads + kv_heads))
        self.work.run(kernels["attention_prepare"], grid, *(each.argument for each in tensors), chunk)
        partials = self.tensor(tokens * heads * splits, shape.head_dim + 2)
        tensors = (queries, state.keys, state.values, partials)
        grid = launches.attention_grid(tokens, heads, kv_heads, splits)
        self.work.run(kernels["attention"], grid, *(each.argument for each in tensors), chunk)
        tensors, grid = (partials, projected[0], queries), launches.groups_grid(tokens * heads)  # queries are done with
        self.work.run(kernels["attention_join"], grid, *(each.argument for each in tensors), chunk)

    def delta(
        self,
        x: Tensor,
        weights: DeltaWeights,
        stretches: Sequence[Stretch],
        shape: schema.LinearAttention,
        eps: float,
    ) -> Tensor:
        """See Backend.delta."""
        projected = self._products(x, weights.mixed, weights.gate, weights.beta, weights.decay)
        convolved = self.tensor(len(x), projected[0].width)
        out = self.tensor(len(x), shape.num_value_heads * shape.value_head_dim)
        for each in stretches:
            rows = [part[each.rows] for part in (*projected, convolved, out)]
            self._advance(rows, weights, each, shape, eps)
        return out

    def _advance(
        self,
        rows: Sequence[Tensor],
        weights: DeltaWeights,
        stretch: Stretch,
        shape: schema.LinearAttention,
        eps: float,
    ) -> None:
        """One sequence's rows: mixed, gate, beta, decay; and what becomes of them: convolved, out."""
        mixed, gate, beta, decay, convolved, out = rows
        state, tokens, heads, dim = stretch.state, stretch.count, shape.num_value_heads, shape.value_head_dim
        assert isinstance(state, DeltaState)
        kernels, count = self._kernels.of(library.delta(shape)), launches.count(tokens)
        tensors: tuple[Tensor, ...] = (mixed, weights.conv, state.conv, convolved)
        grid = launches.threads_grid(mixed.width)
        self.work.run(kernels["delta_convolve"], grid, *(each.argument for each in tensors), count)
        grid = launches.delta_norm_grid(shape.num_key_heads, tokens)
        self.work.run(kernels["delta_norm"], grid, convolved.argument)
        tensors = (convolved, decay, beta, weights.log_decay, weights.decay_bias, state.memory, out)
        grid = launches.rule_grid(dim, heads)
        self.work.run(kernels["delta_rule"], grid, *(each.argument for each in tensors), count)
        tensors, norm = (out, weights.norm, gate, out), launches.gated_norm(dim, eps, tokens * heads)
        grid = launches.groups_grid(tokens * heads)
        self.work.run(self._norms("gated_rms_norm"), grid, *(each.argument for each in tensors), norm)

    def route(self, logits: Tensor, k: int) -> Routes:
        """See Backend.route; waits."""
        tokens = len(logits)
        self.choose(logits, k)
        self.work.finish()
        starts, size = self._choice_starts(tokens, k), NUMBER_BYTES * tokens * k
        ids, weights = (self._choices.bytes[at : at + size] for at in starts[:2])
        return Routes(ids.view(np.int32).reshape(tokens, k).copy(), weights.view(np.float32).reshape(tokens, k).copy())

    def choose(self, logits: Tensor, k: int) -> Choice:
        """Enqueue the router's choice; what it chose before must not be needed any more."""
        ids, weights, order = ((self._choices, at) for at in self._choice_starts(len(logits), k))
        kernel = self._kernels.of(library.router(self._model, k))["route"]
        self.work.run(kernel, launches.rows_grid(len(logits)), logits.argument, ids, weights, order)
        return Choice(ids, weights, order)

    def chosen(self, k: int) -> Ids:
        """The ids that one token chose, once the host knows that the GPU has come as far."""
        return self._choices.bytes[: NUMBER_BYTES * k].view(np.int32).copy()

    def expert(self, to: Tensor, x: Tensor, record: Record, layout: Layout, tokens: Ids, weights: Floats) -> None:
        """See Backend.expert; waits for the expert before, so that the GPU always has one to work on."""
        self.work.section(EXPERTS)
        buffer, offset = self.slots.place(record)
        gate, up, down = (layout.matrix(projection, buffer, offset) for projection in PROJECTIONS)
        for first in range(0, len(tokens), BY_VALUE):
            part = slice(first, first + BY_VALUE)
            self._expert(to, x, (gate, up, down), tokens[part], weights[part])
        self.work.commit()
        self.work.finish(LAG)

    def slot(self, record: Record) -> bytes:
        """Where a record lies, as an entry of the table that kernels read."""
        return launches.slot(*self.slots.locate(record))

    def one_tokens_experts(self, layout: Layout, slots: Argument, x: Tensor, k: int) -> Tensor:
        """Enqueue what K experts give, [K, hidden], from the slots that a table names."""
        hidden, inner = layout.shape
        kernels, pieces = self._kernels.of(layout.build), self.slots.pieces
        arenas = [pieces[min(index, len(pieces) - 1)] for index in range(launches.ARENAS)]
        between, out = self.tensor(k, inner), self.tensor(k, hidden)
        arguments = (*arenas, slots, x.argument, between.argument)
        self.work.run(kernels["experts_gated"], launches.experts_grid(inner, k), *arguments)
        arguments = (*arenas, slots, between.argument, out.argument)
        self.work.run(kernels["experts_down"], launches.experts_grid(hidden, k), *arguments)
        return out

    def combine(self, parts: Tensor, choice: Choice, shared: Tensor, gate: Tensor, to: Tensor) -> None:
        """to += the weighted sum of `parts`, ascending by expert, and of the gated shared expert."""
        tensors = (parts.argument, choice.weights, choice.order, shared.argument, gate.argument, to.argument)
        sizes = launches.combination(len(parts), parts.width)
        self.work.run(self._plain("combine"), launches.threads_grid(parts.width), *tensors, sizes)

    def tensor(self, rows: int, width: int) -> Tensor:
        """Unspecified activations."""
        return Tensor(self.workspace.region(4 * rows * width), rows, width)

    def _build(self, *builds: Build) -> None:
        """Compile kernels before anything runs: what the compiler refuses is known when a pack is opened."""
        for build in builds:
            self._kernels.of(build)

    def _tiled(self, type: str) -> list[Build]:
        """The builds of many tokens' products, if ever there are as many."""
        sizes = TILES if self._extent.chunk > FEW else ()
        return [library.many_products(type, blocks) for blocks in sizes]

    def _expert(
        self, to: Tensor, x: Tensor, matrices: tuple[Matrix, Matrix, Matrix], tokens: Ids, weights: Floats
    ) -> None:
        gate, up, down = matrices
        count, ids = len(tokens), tokens.astype(np.uint32).tobytes()
        gated, upped = (self.tensor(count, matrix.rows) for matrix in (gate, up))
        for matrix, out in ((gate, gated), (up, upped)):
            self._tiles("matmul_gather", matrix, count, x.argument, out.argument, matrix.place.batch(count), ids)
        inner = self._gate(gated, upped)
        arguments = (inner.argument, to.argument, down.place.batch(count), ids, weights.astype(np.float32).tobytes())
        self._tiles("matmul_scatter", down, count, *arguments)

    def _gate(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up, in gate's place."""
        count = len(gate) * gate.width
        arguments = (gate.argument, up.argument, gate.argument, launches.count(count))
        self.work.run(self._plain("swiglu"), launches.threads_grid(count), *arguments)
        return gate

    def _products(self, x: Tensor, *matrices: Matrix) -> list[Tensor]:
        """x matrix^T of each matrix; those of one type in one launch where tokens are few."""
        *starts, end = accumulate((len(x) * matrix.rows for matrix in matrices), initial=0)
        all_ = self.tensor(1, end)
        outs = [Tensor(all_.region, len(x), m.rows, start) for m, start in zip(matrices, starts, strict=True)]
        if len(x) <= FEW:
            for group in _alike(list(zip(matrices, starts, strict=True))):
                self._rows("matvec", group, x, all_)
        else:
            for matrix, out in zip(matrices, outs, strict=True):
                self._tiles("matmul", matrix, len(x), x.argument, out.argument, matrix.place.batch(len(x)))
        return outs

    def _rows(
        self, kernel: str, matrices: Sequence[tuple[Matrix, int]], x: Tensor, to: Tensor, products: int = 0
    ) -> None:
        """A launch row by row; each matrix's results begin at a float of `to`."""
        first, tallest = matrices[0][0], max(matrix.rows for matrix, _ in matrices)
        grid = launches.products_grid(tallest, len(x), products or len(matrices))
        packed = b"".join(matrix.place.product(start) for matrix, start in matrices)
        pipeline = self._kernels.of(library.products(first.type))[kernel]
        self.work.run(pipeline, grid, first.buffer, x.argument, to.argument, packed)

    def _tiles(self, kernel: str, matrix: Matrix, count: int, *arguments: Argument) -> None:
        """A launch in tiles of `count` tokens."""
        blocks = TILES[count > launches.TOKEN_BLOCK]
        pipeline = self._kernels.of(library.many_products(matrix.type, blocks))[kernel]
        self.work.run(pipeline, launches.many_products_grid(matrix.rows, count, blocks), matrix.buffer, *arguments)

    def _plain(self, kernel: str) -> Pipeline:
        return self._kernels.of(library.plain("combine.metal"))[kernel]

    def _norms(self, kernel: str) -> Pipeline:
        return self._kernels.of(library.plain("norms.metal"))[kernel]

    def _choice_starts(self, tokens: int, k: int) -> list[int]:
        """Where ids, weights and order begin."""
        if CHOICE_BYTES * tokens * k > len(self._choices):
            raise DeviceError(f"{tokens} tokens with {k} experts each are more than was planned for")
        return [NUMBER_BYTES * tokens * k * part for part in range(CHOICE_BYTES // NUMBER_BYTES)]


class _Turns:
    """cos and sin of every position, computed up to the last that was asked for."""

    def __init__(self, spares: Spares, shape: schema.FullAttention, context: int) -> None:
        self._frequencies = frequencies(shape.rotary_dims, shape.rope_theta)
        size = 4 * context * len(self._frequencies)
        width = len(self._frequencies)
        self._cos, self._sin = (Tensor(spares.region(size, name), context, width) for name in ("cosines", "sines"))
        self._known = 0

    def of(self, position: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Those of some positions."""
        last = position + tokens
        if last > self._known:
            new = slice(self._known, last)
            cos, sin = (np.empty((last - self._known, len(self._frequencies)), np.float32) for _ in range(2))
            _native.rotation(self._known, self._frequencies, cos, sin)
            self._cos.values[new], self._sin.values[new] = cos, sin
            self._known = last
        return self._cos[position:last], self._sin[position:last]


def _alike(products: Sequence[tuple[Matrix, int]]) -> Iterator[list[tuple[Matrix, int]]]:
    """Those with one type and one buffer together."""
    groups: dict[tuple[str, int], list[tuple[Matrix, int]]] = {}
    for matrix, start in products:
        groups.setdefault((matrix.type, id(matrix.buffer)), []).append((matrix, start))
    yield from groups.values()


def _projection(layout: RecordLayout, projection: str) -> tuple[str, launches.MatrixPlace]:
    """The type of a projection's matrix, and where it lies in a record."""
    format_: Format = layout.formats[projection]
    starts = {part.name.partition(".")[2]: part.offset for part in layout.components if _of(part.name, projection)}
    rows, cols = layout.shape.of(projection)
    offsets = {name: starts.get(name, 0) for name in library.PARTS}
    return library.matrix_type(format_, "bf16"), launches.MatrixPlace(**offsets, rows=rows, cols=cols)


def _of(name: str, projection: str) -> bool:
    return name.partition(".")[0] == projection


def _splits(positions: int) -> int:
    return max(1, min(MOST_SPLITS, positions // SPLIT))
