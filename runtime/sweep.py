"""The layer-streamed forward pass: a whole corpus goes through one layer, then through the next.

Each layer's trunk and each of its experts is read once per pass, whatever the number of tokens, so neither model nor
hidden states have to fit in memory. Every token's arithmetic is the engine's, operation for operation: the logits are
those of `Session.extend_all`, bit for bit. The steps are separate: who only changes layer l starts from a copy of the
stream before it.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from ..layout.matrix import ExpertMatrices
from ..layout.record import PROJECTIONS
from ..manifests.errors import CorruptInputError, UsageError
from .backends.base import AttentionState, Backend, DeltaState, Floats, Ids, Matrix, Routes, Stretch, Tensor
from .corpus import Corpus, Room, Stream
from .operations import Operations
from .source import Source
from .state import State, layer_state
from .weights import LayerWeights, TrunkLoader

CHUNK = 512  # tokens of a sequence mixed together
BLOCK = 4096  # rows computed together where sequences do not matter
IN_MEMORY = Room()


class Observer(Protocol):
    """Sees what the experts see. Arrays are valid only during the call."""

    def layer(self, layer: int) -> None:
        """A layer begins, and the one before has ended."""

    def inputs(self, layer: int, first: int, inputs: Floats) -> None:
        """What the experts of a layer may see of a block of tokens from `first` on, [n, hidden]; before any expert."""

    def expert(self, layer: int, expert: int, tokens: Ids, inputs: Floats, inner: Floats, shares: Floats) -> None:
        """Rows routed to an expert, tokens ascending: at most a block of them per call, all before the next expert.

        `tokens` [n] says which, `inputs` [n, hidden] is what gate and up see, `inner` [n, intermediate] what down
        sees, `shares` [n] the route's weights.
        """


class Sweep:
    """Takes streams through a source's layers. `experts_per_token` is K, the model's own by default.

    Memory: a layer's trunk, a few experts, `block` rows of activations, one sequence's state, two arrays over all
    tokens (see corpus.Room) and their routes (8 K bytes per token).
    Raises UsageError for a K outside the model's 1 to its own.
    """

    def __init__(
        self,
        source: Source,
        backend: Backend,
        *,
        experts_per_token: int | None = None,
        chunk: int = CHUNK,
        block: int = BLOCK,
    ) -> None:
        self.source = source
        self.model = source.model
        self.backend = backend
        self.experts_per_token = checked_experts_per_token(source, experts_per_token)
        self._operations = Operations(source.model, backend)
        self._trunk = TrunkLoader(source, backend)
        self._chunk, self._block = chunk, block

    def embed(self, corpus: Corpus, room: Room = IN_MEMORY) -> Stream:
        """The stream before layer 0. Raises UsageError for a token that the model does not know."""
        corpus.require_known(self.model.vocab_size)
        rows = room.array(len(corpus), self.model.hidden_size)
        table = self._trunk.embedding()
        for first, last in self._blocks(len(corpus)):
            rows[first:last] = self.backend.to_host(self.backend.embed(table, corpus.tokens[first:last]))
        return Stream(corpus, rows, room)

    def run(self, stream: Stream, first: int = 0, *, observer: Observer | None = None) -> Stream:
        """Take the stream, in place, through the layers from `first` to the last."""
        for layer in range(first, self.model.num_layers):
            self.advance(layer, stream, observer=observer)
        return stream

    def advance(
        self,
        layer: int,
        stream: Stream,
        *,
        observer: Observer | None = None,
        states: Sequence[State] | None = None,
    ) -> None:
        """Take the stream, in place, through one layer.

        `states`, one per sequence, are what came before the stream's tokens (nothing, by default); their layer is
        advanced, their position is not. Raises CorruptInputError if an activation is not finite.
        """
        if observer is not None:
            observer.layer(layer)
        weights = self._trunk.layer(layer)
        self._mix(layer, stream, weights, states)
        out = stream.room.array(*stream.rows.shape)
        self._add_experts(layer, stream, weights, out, observer)
        self._add_shared(layer, stream, weights, out)

    def logits(self, stream: Stream, rows: slice) -> Floats:
        """Logits [rows, vocab] float32 of a stream that has been through every layer."""
        return self.logits_of(stream.rows[rows])

    def logits_of(self, rows: Floats) -> Floats:
        """Logits of some rows of such a stream."""
        norm, head = self._head
        return self._operations.logits(self.backend.vector(rows), norm, head)

    @cached_property
    def _head(self) -> tuple[Tensor, Matrix]:
        return self._trunk.norm(), self._trunk.head()

    def _blocks(self, rows: int) -> Iterator[tuple[int, int]]:
        for first in range(0, rows, self._block):
            yield first, min(first + self._block, rows)

    def _mix(self, layer: int, stream: Stream, weights: LayerWeights, states: Sequence[State] | None) -> None:
        for index, (first, last) in enumerate(stream.corpus.bounds()):
            if states is None:
                state, position = layer_state(self.model, self.backend, layer, last - first), 0
            else:
                state, position = states[index].layers[layer], states[index].position
            self._mix_sequence(stream.rows[first:last], weights, state, position)

    def _mix_sequence(
        self, rows: Floats, weights: LayerWeights, state: AttentionState | DeltaState, position: int
    ) -> None:
        backend = self.backend
        for first in range(0, len(rows), self._chunk):
            part = rows[first : first + self._chunk]
            stretch = Stretch(slice(0, len(part)), position + first, state)
            mixed = self._operations.mix(backend.vector(part), weights, [stretch])
            part += backend.to_host(mixed)

    def _add_experts(
        self, layer: int, stream: Stream, weights: LayerWeights, out: Floats, observer: Observer | None
    ) -> None:
        """out += what the routed experts give, in ascending order of expert."""
        routes = self._routes(layer, stream, weights, observer)
        visits = {expert: (tokens, shares) for expert, tokens, shares in routes.by_expert()}
        for expert, matrices in self.source.experts(layer, list(visits)):
            projections = self._projections(matrices)
            tokens, shares = visits[expert]
            for first, last in self._blocks(len(tokens)):
                block, part = tokens[first:last], shares[first:last]
                normed = self._normed(stream.rows[block], weights)
                inner = self.backend.swiglu(normed, projections["gate"], projections["up"])
                if observer is not None:
                    host = self.backend.to_host
                    observer.expert(layer, expert, block, host(normed), host(inner), part)
                out[block] += part[:, None] * self.backend.to_host(self.backend.linear(inner, projections["down"]))

    def _projections(self, matrices: ExpertMatrices) -> dict[str, Matrix]:
        return {projection: self.backend.matrix(matrices[projection]) for projection in PROJECTIONS}

    def _routes(self, layer: int, stream: Stream, weights: LayerWeights, observer: Observer | None) -> Routes:
        ids: list[Ids] = []
        shares: list[Floats] = []
        for first, last in self._blocks(len(stream.corpus)):
            normed = self._normed(stream.rows[first:last], weights)
            if observer is not None:
                observer.inputs(layer, first, self.backend.to_host(normed))
            routes = self._operations.route(normed, weights, self.experts_per_token)
            ids.append(routes.ids)
            shares.append(routes.weights)
        return Routes(np.concatenate(ids), np.concatenate(shares))

    def _add_shared(self, layer: int, stream: Stream, weights: LayerWeights, out: Floats) -> None:
        """The stream gains `out`, after the shared expert was added to it."""
        for first, last in self._blocks(len(stream.corpus)):
            rows, gained = stream.rows[first:last], self.backend.vector(out[first:last])
            self._operations.add_shared(gained, self._normed(rows, weights), weights)
            rows += self.backend.to_host(gained)
            if not np.isfinite(rows).all():
                raise CorruptInputError(
                    f"{self.source.where}: activations after layer {layer} are not finite; its weights are damaged"
                    " or too large for float32"
                )

    def _normed(self, rows: Floats, weights: LayerWeights) -> Tensor:
        return self._operations.norm(self.backend.vector(rows), weights.post_norm)


def checked_experts_per_token(source: Source, wanted: int | None) -> int:
    """K: `wanted`, or the model's own. Raises UsageError for one outside the model's range."""
    most = source.model.num_experts_per_tok
    if wanted is not None and not 1 <= wanted <= most:
        raise UsageError(f"{source.where}: {wanted} experts per token are outside the model's 1 to {most}")
    return most if wanted is None else wanted
