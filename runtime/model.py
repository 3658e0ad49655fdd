"""What each layer of Qwen3.5-MoE does, once, in a backend's operations. How they run is not known here.

x += mixer(norm(x)); x += experts(norm(x)) + sigmoid(shared gate) * shared expert(norm(x)); logits = head norm(x).
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from ..layout.record import RecordLayout
from ..manifests import schema
from .backends.base import (
    AttentionState,
    AttentionWeights,
    Backend,
    DeltaState,
    DeltaWeights,
    Floats,
    Matrix,
    Record,
    Rotation,
    Routes,
    Tensor,
)
from .state import State
from .weights import LayerWeights, Weights

SPAN = 256  # tokens of a chunk that go through a mixer together; experts see the whole chunk


class Experts(Protocol):
    """Where records come from; see experts.ExpertStream."""

    def records(self, layer: int, experts: Sequence[int]) -> Iterator[tuple[int, Record]]:
        """Yield (expert, record) in the order of `experts`."""


class Operations:
    """The parts of a layer, whoever drives them: the engine chunk by chunk, the sweep corpus by corpus."""

    def __init__(self, shape: schema.Model, backend: Backend) -> None:
        self.shape = shape
        self.backend = backend

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm of each token."""
        return self.backend.rms_norm(x, weight, self.shape.rms_norm_eps)

    def mix(
        self, x: Tensor, weights: LayerWeights, state: AttentionState | DeltaState, position: int, rotation: Rotation
    ) -> Tensor:
        """What the layer's mixer adds to residual rows `x`, consecutive tokens of one sequence; advances `state`."""
        shape, eps = self.shape, self.shape.rms_norm_eps
        normed = self.norm(x, weights.input_norm)
        if isinstance(weights.mixer, AttentionWeights) and isinstance(state, AttentionState):
            return self.backend.attention(normed, weights.mixer, state, position, rotation, shape.full_attention, eps)
        assert isinstance(weights.mixer, DeltaWeights)
        assert isinstance(state, DeltaState)
        return self.backend.delta(normed, weights.mixer, state, shape.linear_attention, eps)

    def route(self, normed: Tensor, weights: LayerWeights, experts_per_token: int) -> Routes:
        """The router's choice for normed tokens."""
        return self.backend.route(self.backend.linear(normed, weights.router), experts_per_token)

    def add_shared(self, to: Tensor, normed: Tensor, weights: LayerWeights) -> None:
        """to += sigmoid(gate) * the shared expert of normed tokens, in place."""
        backend, shared = self.backend, weights.shared
        inner = backend.swiglu(normed, shared.gate_proj, shared.up_proj)
        backend.add_gated(to, backend.linear(inner, shared.down_proj), backend.linear(normed, shared.gate))

    def logits(self, x: Tensor, norm: Tensor, head: Matrix) -> Floats:
        """Logits [tokens, vocab] on the host, of rows of the residual stream."""
        return self.backend.to_host(self.backend.linear(self.norm(x, norm), head))


class TextModel:
    """The decoder. `experts_per_token` is K; contributions are summed in ascending order of expert, then the shared."""

    def __init__(
        self,
        shape: schema.Model,
        weights: Weights,
        layouts: Sequence[RecordLayout],
        experts: Experts,
        backend: Backend,
        experts_per_token: int,
    ) -> None:
        self._operations = Operations(shape, backend)
        self._shape = shape
        self._weights = weights
        self._layouts = [backend.layout(layout) for layout in layouts]
        self._experts = experts
        self._backend = backend
        self._experts_per_token = experts_per_token

    def hidden(self, tokens: Sequence[int], state: State) -> Tensor:
        """The residual stream [tokens, hidden] after the last layer; advances `state`'s layers, not its position."""
        backend, operations = self._backend, self._operations
        x = backend.embed(self._weights.embedding, np.asarray(tokens, np.int32))
        for index, weights in enumerate(self._weights.layers):
            self._mix(x, weights, state.layers[index], state.position)
            normed = operations.norm(x, weights.post_norm)
            backend.add(x, self._feed_forward(index, normed, weights))
        return x

    def _mix(self, x: Tensor, weights: LayerWeights, state: AttentionState | DeltaState, position: int) -> None:
        """x += the layer's mixer, a span of tokens at a time, which bounds the memory of its projections."""
        for first in range(0, len(x), SPAN):
            part = x[first : first + SPAN]
            rotation = self._backend.rotation(position + first, len(part), self._shape.full_attention)
            self._backend.add(part, self._operations.mix(part, weights, state, position + first, rotation))

    def logits(self, hidden: Tensor) -> Floats:
        """Logits [tokens, vocab] on the host, of rows of the residual stream."""
        return self._operations.logits(hidden, self._weights.norm, self._weights.head)

    def _feed_forward(self, index: int, normed: Tensor, weights: LayerWeights) -> Tensor:
        backend = self._backend
        routes = self._operations.route(normed, weights, self._experts_per_token)
        visits = {expert: (tokens, shares) for expert, tokens, shares in routes.by_expert()}
        out = backend.zeros(len(normed), self._shape.hidden_size)
        for expert, record in self._experts.records(index, list(visits)):
            backend.expert(out, normed, record, self._layouts[index], *visits[expert])
        self._operations.add_shared(out, normed, weights)
        return out
