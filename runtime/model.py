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
    Ids,
    Matrix,
    Record,
    Routes,
    Tensor,
)
from .stages import Stages
from .state import State
from .weights import LayerWeights, Weights

SPAN = 256  # tokens of a chunk that go through a mixer together; experts see the whole chunk


class Experts(Protocol):
    """Where records come from; see experts.ExpertStream."""

    def records(self, layer: int, experts: Sequence[int]) -> Iterator[tuple[int, Record]]:
        """Yield (expert, record) in the order of `experts`."""

    def batches(self, layer: int, experts: Sequence[int]) -> Iterator[list[tuple[int, Record]]]:
        """Yield (expert, record) as they can be had: first those in memory, which may be none, then the others.

        They may be damaged until `confirm` has returned.
        """

    def confirm(self) -> None:
        """Wait until all that `batches` yielded has been checked; raises if any of it is damaged."""

    def abandon(self) -> None:
        """Give up what is under way, for nothing will come of what was handed out."""

    def learn(self, layer: int, ids: Ids) -> None:
        """What the tokens of a chunk chose, [tokens, K]."""

    @property
    def may_foresee(self) -> bool:
        """Whether a guess at a later layer's experts is welcome."""

    def foresee(self, layer: int, experts: Sequence[int], most: int) -> None:
        """A guess at what `layer` will want, likeliest first; the first `most` are worth reading."""


class Operations:
    """The parts of a layer, whoever drives them: the engine chunk by chunk, the sweep corpus by corpus."""

    def __init__(self, shape: schema.Model, backend: Backend) -> None:
        self.shape = shape
        self.backend = backend

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm of each token."""
        return self.backend.rms_norm(x, weight, self.shape.rms_norm_eps)

    def mix(self, x: Tensor, weights: LayerWeights, state: AttentionState | DeltaState, position: int) -> Tensor:
        """What the layer's mixer adds to residual rows `x`, consecutive tokens of one sequence; advances `state`."""
        shape, eps = self.shape, self.shape.rms_norm_eps
        normed = self.norm(x, weights.input_norm)
        if isinstance(weights.mixer, AttentionWeights) and isinstance(state, AttentionState):
            rotation = self.backend.rotation(position, len(x), shape.full_attention)
            return self.backend.attention(normed, weights.mixer, state, position, rotation, shape.full_attention, eps)
        assert isinstance(weights.mixer, DeltaWeights)
        assert isinstance(state, DeltaState)
        return self.backend.delta(normed, weights.mixer, state, shape.linear_attention, eps)

    def route(self, normed: Tensor, weights: LayerWeights, experts_per_token: int) -> Routes:
        """The router's choice for normed tokens."""
        return self.backend.route(self.backend.linear(normed, weights.router), experts_per_token)

    def add_shared(self, to: Tensor, normed: Tensor, weights: LayerWeights) -> None:
        """to += sigmoid(gate) * the shared expert of normed tokens, in place."""
        self.backend.add_gated(to, *self.shared_expert(normed, weights))

    def shared_expert(self, normed: Tensor, weights: LayerWeights) -> tuple[Tensor, Tensor]:
        """The shared expert of normed tokens, and its gate before the sigmoid, [tokens, 1]."""
        backend, shared = self.backend, weights.shared
        inner = backend.swiglu(normed, shared.gate_proj, shared.up_proj)
        return backend.linear(inner, shared.down_proj), backend.linear(normed, shared.gate)

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
        self._parts = backend.reserved(experts_per_token, shape.hidden_size)  # one token's, expert by expert
        self.stages = Stages()

    def logits(self, tokens: Sequence[int], state: State, wanted: int) -> Floats:
        """Logits [wanted, vocab] on the host after the last tokens; advances `state`'s layers, not its position.

        Raises what the experts raise: then `state` is of no use. All is computed while the records of earlier layers
        are still being checked, and nothing leaves here before they were found good.
        """
        try:
            x = self._hidden(tokens, state)
            self.stages.turn("head")
            logits = self._operations.logits(x[len(x) - wanted :], self._weights.norm, self._weights.head)
            self.stages.turn("reads")
            self._experts.confirm()
        except BaseException:
            self._experts.abandon()
            raise
        finally:
            self.stages.turn(None)
        return logits

    def _hidden(self, tokens: Sequence[int], state: State) -> Tensor:
        """The residual stream [tokens, hidden] after the last layer."""
        x = self._backend.embed(self._weights.embedding, np.asarray(tokens, np.int32))
        if len(x) == 1:
            self._foresee(0, x, self._experts_per_token)
        for index, weights in enumerate(self._weights.layers):
            self.stages.turn("mixer")
            self._mix(x, weights, state.layers[index], state.position)
            self._feed_forward(index, x, weights)
        return x

    def _mix(self, x: Tensor, weights: LayerWeights, state: AttentionState | DeltaState, position: int) -> None:
        """x += the layer's mixer, a span of tokens at a time, which bounds the memory of its projections."""
        for first in range(0, len(x), SPAN):
            part = x[first : first + SPAN]
            self._backend.add(part, self._operations.mix(part, weights, state, position + first))

    def _feed_forward(self, index: int, x: Tensor, weights: LayerWeights) -> None:
        """x += the layer's experts."""
        self.stages.turn("router")
        normed = self._backend.shared(self._operations.norm(x, weights.post_norm))
        routes = self._operations.route(normed, weights, self._experts_per_token)
        if len(x) == 1:
            self._backend.add(x, self._one_token(index, x, normed, routes))
            self._foresee(index + 1, x, self._experts_per_token)
        else:
            self._backend.add(x, self._sweep(index, normed, routes))

    def _foresee(self, index: int, x: Tensor, most: int) -> None:
        """Guess what layer `index` wants by what of its input is known, for `most` experts: the disk shall not idle."""
        if index == len(self._weights.layers) or not self._experts.may_foresee:
            return
        self.stages.turn("router")
        weights = self._weights.layers[index]
        normed = self._operations.norm(x, weights.post_norm)
        guess = self._operations.route(normed, weights, self._experts_per_token)
        self._experts.foresee(index, guess.ids[0].tolist(), most)

    def _sweep(self, index: int, normed: Tensor, routes: Routes) -> Tensor:
        """What all experts give to many tokens, one expert after the other."""
        backend, stages = self._backend, self.stages
        self._experts.learn(index, routes.ids)
        visits = {expert: (tokens, shares) for expert, tokens, shares in routes.by_expert()}
        out = backend.zeros(len(routes.ids), self._shape.hidden_size)
        stages.turn("reads")
        for expert, record in self._experts.records(index, list(visits)):
            stages.turn("experts")
            backend.expert(out, normed, record, self._layouts[index], *visits[expert])
            stages.turn("reads")
        stages.turn("shared")
        self._operations.add_shared(out, normed, self._weights.layers[index])
        return out

    def _one_token(self, index: int, x: Tensor, normed: Tensor, routes: Routes) -> Tensor:
        """The same for one token: experts are computed as they come, and added up in ascending order all the same.

        The next layer's likeliest experts are guessed before, from less: they are read as soon as these have come.
        """
        backend, stages, ids = self._backend, self.stages, routes.ids[0]
        parts, shared = self._parts, None
        came: list[int] = []
        stages.turn("reads")
        for batch in self._experts.batches(index, ids.tolist()):
            stages.turn("experts")
            backend.experts(normed, [record for _, record in batch], self._layouts[index], parts[len(came) :])
            came += [expert for expert, _ in batch]
            if shared is None:  # the other experts' reads are under way by now
                self._foresee(index + 1, x, -(-len(ids) // 2))
                stages.turn("shared")
                shared = self._operations.shared_expert(normed, self._weights.layers[index])
            stages.turn("reads")
        assert shared is not None
        stages.turn("experts")
        order = np.array(came, np.int32).argsort().astype(np.int32)
        out = backend.combine(parts, order, routes.weights[0][ids.argsort()])
        backend.add_gated(out, *shared)
        return out
