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
    Record,
    Rotation,
    Tensor,
)
from .state import State
from .weights import LayerWeights, Weights


class Experts(Protocol):
    """Where records come from; see experts.ExpertStream."""

    def records(self, layer: int, experts: Sequence[int]) -> Iterator[tuple[int, Record]]:
        """Yield (expert, record) in the order of `experts`."""


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
        self._shape = shape
        self._weights = weights
        self._layouts = [backend.layout(layout) for layout in layouts]
        self._experts = experts
        self._backend = backend
        self._experts_per_token = experts_per_token

    def hidden(self, tokens: Sequence[int], state: State) -> Tensor:
        """The residual stream [tokens, hidden] after the last layer; advances `state`'s layers, not its position."""
        backend = self._backend
        x = backend.embed(self._weights.embedding, np.asarray(tokens, np.int32))
        rotation = backend.rotation(state.position, len(tokens), self._shape.full_attention)
        for index, weights in enumerate(self._weights.layers):
            normed = self._norm(x, weights.input_norm)
            backend.add(x, self._mix(normed, weights, state.layers[index], state.position, rotation))
            normed = self._norm(x, weights.post_norm)
            backend.add(x, self._feed_forward(index, normed, weights))
        return x

    def logits(self, hidden: Tensor) -> Floats:
        """Logits [tokens, vocab] on the host, of rows of the residual stream."""
        normed = self._norm(hidden, self._weights.norm)
        return self._backend.to_host(self._backend.linear(normed, self._weights.head))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._backend.rms_norm(x, weight, self._shape.rms_norm_eps)

    def _mix(
        self,
        x: Tensor,
        weights: LayerWeights,
        state: AttentionState | DeltaState,
        position: int,
        rotation: Rotation,
    ) -> Tensor:
        shape, eps = self._shape, self._shape.rms_norm_eps
        if isinstance(weights.mixer, AttentionWeights) and isinstance(state, AttentionState):
            return self._backend.attention(x, weights.mixer, state, position, rotation, shape.full_attention, eps)
        assert isinstance(weights.mixer, DeltaWeights)
        assert isinstance(state, DeltaState)
        return self._backend.delta(x, weights.mixer, state, shape.linear_attention, eps)

    def _feed_forward(self, index: int, x: Tensor, weights: LayerWeights) -> Tensor:
        backend = self._backend
        routes = backend.route(backend.linear(x, weights.router), self._experts_per_token)
        visits = {expert: (tokens, shares) for expert, tokens, shares in routes.by_expert()}
        out = backend.zeros(len(x), self._shape.hidden_size)
        for expert, record in self._experts.records(index, list(visits)):
            backend.expert(out, x, record, self._layouts[index], *visits[expert])
        shared = weights.shared
        inner = backend.swiglu(x, shared.gate_proj, shared.up_proj)
        backend.add_gated(out, backend.linear(inner, shared.down_proj), backend.linear(x, shared.gate))
        return out
