"""What a backend must offer, and the few values that cross between the model, a backend and the host.

The model says what a layer does in these operations, and nothing else. A backend may only enqueue work: the single
point where the host must see a result is `Routes.ids`, once per layer, because the host then reads experts from disk.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...layout.matrix import StoredMatrix
from ...layout.record import RecordLayout
from ...manifests import schema
from ..tally import Tally
from ..trace import Recorder

if TYPE_CHECKING:
    from ..decoding import Decoding, Parts

Floats: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int32]
Record: TypeAlias = NDArray[np.uint8]
Tensor: TypeAlias = Any  # a backend's own float32 activations, [tokens, width]
Matrix: TypeAlias = Any  # a backend's own handle on a stored matrix
Layout: TypeAlias = Any  # a backend's own view of a layer's record layout


@dataclass(frozen=True)
class AttentionWeights:
    """A full-attention layer: `query` projects to [query | gate] per head; norms are multipliers [head_dim]."""

    query: Matrix
    key: Matrix
    value: Matrix
    out: Matrix
    query_norm: Tensor
    key_norm: Tensor


@dataclass(frozen=True)
class DeltaWeights:
    """A Gated DeltaNet layer: `conv` is [kernel, channels], `log_decay` A_log, `decay_bias` dt_bias."""

    mixed: Matrix
    gate: Matrix
    beta: Matrix
    decay: Matrix
    out: Matrix
    conv: Tensor
    log_decay: Tensor
    decay_bias: Tensor
    norm: Tensor


@dataclass
class AttentionState:
    """The key/value cache of one layer: a row of num_kv_heads * head_dim floats for each position of the context."""

    keys: Tensor
    values: Tensor


@dataclass
class DeltaState:
    """`conv`: the last kernel - 1 inputs [kernel - 1, channels]; `memory`: [value_heads, key_dim, value_dim]."""

    conv: Tensor
    memory: Tensor


@dataclass(frozen=True)
class Stretch:
    """Rows of a chunk that are consecutive tokens of one sequence.

    `position` is the first one's in the sequence, `state` the sequence's of the layer that the chunk goes through.
    """

    rows: slice
    position: int
    state: AttentionState | DeltaState

    @property
    def count(self) -> int:
        """How many tokens."""
        return int(self.rows.stop - self.rows.start)


@dataclass(frozen=True)
class Routes:
    """The router's choice: `ids` (host-visible) and `weights`, both [tokens, K]."""

    ids: Ids
    weights: Floats

    @property
    def visits(self) -> Mapping[int, Sequence[int]]:
        """Of every expert that was chosen its tokens, ascending."""
        if len(self.ids) == 1:
            return {expert: [0] for expert in self.ids[0].tolist()}
        return {expert: tokens.tolist() for expert, tokens, _ in self.by_expert()}

    def by_expert(self) -> Iterator[tuple[int, Ids, Floats]]:
        """(expert, its tokens ascending, their weights), experts ascending."""
        order = np.argsort(self.ids, axis=None, kind="stable")
        experts, weights = self.ids.reshape(-1)[order], self.weights.reshape(-1)[order]
        tokens = (order // self.ids.shape[1]).astype(np.int32)
        starts = [0, *(np.flatnonzero(experts[1:] != experts[:-1]) + 1).tolist(), len(order)]
        for first, last in pairwise(starts):
            yield int(experts[first]), tokens[first:last], weights[first:last]


class Memory(Protocol):
    """Host memory that kernels read in place."""

    @property
    def most(self) -> int:
        """Bytes of the largest piece that can be reserved."""

    def reserve(self, size: int) -> Record:
        """A piece of `size` bytes of zeros, uint8 [size], which takes memory where it is first written."""


class Backend(Protocol):
    """The operations of the model. Results are new tensors unless a docstring says otherwise.

    They are called within `forward`, but for those that take over weights or reserve memory.
    """

    name: str
    exact: bool  # whether products see activations as they are
    lag: int  # experts whose records may still be read after `expert` has returned

    @property
    def memory(self) -> Memory:
        """For the trunk."""

    @property
    def slots(self) -> Memory:
        """For expert records."""

    @property
    def tally(self) -> Tally:
        """What was asked of a GPU so far; nothing where there is none."""

    def record(self, trace: Recorder) -> None:
        """From now on `trace` hears where time goes besides the caller's."""

    def forward(self) -> AbstractContextManager[None]:
        """The context of one forward pass: at its end nothing of it is under way any more."""

    def section(self, label: str) -> None:
        """What follows belongs to a part of the pass of this name, by which a failure of a GPU is told."""

    def close(self) -> None:
        """Return once nothing is under way any more, whatever interrupted it: memory may then be freed."""

    def decoding(self, parts: "Parts") -> "Decoding":
        """How a token, or as many as it takes together, go through their experts here."""

    def matrix(self, stored: StoredMatrix) -> Matrix:
        """Take over a stored matrix; its bits stay as they are."""

    def exact_matrix(self, stored: StoredMatrix) -> Matrix:
        """Like `matrix`, for small ones that decide much: their products never see rounded activations."""

    def vector(self, values: Floats) -> Tensor:
        """Take over small float32 weights of any shape."""

    def layout(self, layout: RecordLayout) -> Layout:
        """Prepare to read a layer's expert records."""

    def zeros(self, rows: int, width: int) -> Tensor:
        """A float32 tensor [rows, width] of zeros."""

    def state(self, *shape: int) -> Tensor:
        """A float32 tensor of zeros that outlives a forward pass."""

    def reserved(self, rows: int, width: int) -> Tensor:
        """One [rows, width] of unspecified values, that does too; rows never written should occupy no memory."""

    def to_host(self, x: Tensor) -> Floats:
        """The values as a numpy array, which may be the tensor's own memory."""

    def write(self, to: Tensor, values: Floats) -> None:
        """Overwrite a tensor that outlives forward passes, between two of them; values are shaped as `to_host`'s."""

    def embed(self, table: Matrix, ids: Ids) -> Tensor:
        """Rows `ids` of the embedding table."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight, per token."""

    def shared(self, x: Tensor) -> Tensor:
        """The same activations for several products, which then prepare them once; good for products only."""

    def linear(self, x: Tensor, matrix: Matrix) -> Tensor:
        """x matrix^T."""

    def add_linear(self, to: Tensor, x: Tensor, matrix: Matrix) -> None:
        """to += x matrix^T, in place."""

    def swiglu(self, x: Tensor, gate: Matrix, up: Matrix) -> Tensor:
        """silu(x gate^T) * (x up^T)."""

    def add(self, to: Tensor, x: Tensor) -> None:
        """to += x, in place."""

    def add_gated(self, to: Tensor, x: Tensor, gate: Tensor) -> None:
        """to += sigmoid(gate) * x, in place; gate is [tokens, 1]."""

    def attention(
        self,
        x: Tensor,
        weights: AttentionWeights,
        stretches: Sequence[Stretch],
        shape: schema.FullAttention,
        eps: float,
    ) -> Tensor:
        """What the heads of gated full attention give for normed `x`, [tokens, num_heads * head_dim].

        The stretches cover all rows. Writes each one's cache rows from its position on, which must fit.
        """

    def delta(
        self,
        x: Tensor,
        weights: DeltaWeights,
        stretches: Sequence[Stretch],
        shape: schema.LinearAttention,
        eps: float,
    ) -> Tensor:
        """What the heads of a Gated DeltaNet give for normed `x`, [tokens, value heads * dim]; advances the states.

        The stretches cover all rows.
        """

    def route(self, logits: Tensor, k: int) -> Routes:
        """Softmax over all experts, the k largest (ties to the lower id), renormalised."""

    def expert(self, to: Tensor, x: Tensor, record: Record, layout: Layout, tokens: Ids, weights: Floats) -> None:
        """to[tokens] += weights * expert(x[tokens]), in place.

        The record may be overwritten once this has returned for `lag` more records, or the forward pass has ended.
        """


class HostBackend(Backend, Protocol):
    """What decoding needs besides where the host sees every result at once."""

    def experts(
        self, x: Tensor, records: Sequence[Record], layout: Layout, tokens: Sequence[Sequence[int]], to: Tensor
    ) -> None:
        """to[0], to[1], ... = expert(x[tokens[0]]) of the first record, then those of the next ones.

        The records may be overwritten once this returns.
        """

    def combine(self, parts: Tensor, came: Sequence[int], routes: Routes) -> Tensor:
        """Of each token the weighted sum of what its experts gave, added up in ascending order as `expert` does.

        Part i is that of the token and expert of pair `came[i]`; see pair_of.
        """


def pair_of(token: int, expert: int) -> int:
    """One number for a token and an expert that it chose."""
    return token << 32 | expert
