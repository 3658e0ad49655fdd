"""What each layer of Qwen3.5-MoE does, once, in a backend's operations. How they run is not known here.

x += mixer(norm(x)); x += experts(norm(x)) + sigmoid(shared gate) * shared expert(norm(x)); logits = head norm(x).
"""

from collections.abc import Sequence

import numpy as np

from ..layout.record import RecordLayout
from ..manifests import schema
from .backends.base import AttentionState, Backend, DeltaState, Floats, Routes, Tensor
from .decoding import Experts, Parts
from .operations import Operations
from .stages import Stages
from .state import State
from .weights import LayerWeights, Weights

SPAN = 256  # tokens of a chunk that go through a mixer together; experts see the whole chunk


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
        self.stages = Stages()
        parts = Parts(self._operations, weights.layers, self._layouts, experts, experts_per_token, self.stages)
        self._decoding = backend.decoding(parts)

    def close(self) -> None:
        """Return once nothing is under way, whatever an interrupt has left: memory may then be freed."""
        self._decoding.abandon()
        self._backend.close()

    def logits(self, tokens: Sequence[int], state: State, wanted: int) -> Floats:
        """Logits [wanted, vocab] on the host after the last tokens; advances `state`'s layers, not its position.

        Raises what the experts raise: then `state` is of no use. All is computed while the records of earlier layers
        are still being checked, and nothing leaves here before they were found good.
        """
        try:
            with self._backend.forward():
                logits = self._logits(tokens, state, wanted)
            self.stages.turn("reads")
            self._experts.confirm()
        except BaseException:
            self._decoding.abandon()
            self._experts.abandon()
            raise
        finally:
            self.stages.turn(None)
        return logits

    def _logits(self, tokens: Sequence[int], state: State, wanted: int) -> Floats:
        """The same, of experts of which nobody knows yet whether they are good."""
        x = self._backend.embed(self._weights.embedding, np.asarray(tokens, np.int32))
        if len(tokens) == 1:
            self._decode(x, state)
        else:
            self._prefill(x, state)
        self.stages.turn("head")
        logits = self._operations.logits(x[len(x) - wanted :], self._weights.norm, self._weights.head)
        if len(tokens) == 1:
            self._decoding.finish()
        return logits

    def _decode(self, x: Tensor, state: State) -> None:
        """One token [1, hidden] through all layers, in place."""
        self._decoding.begin(x)
        for index, weights in enumerate(self._weights.layers):
            self._mix(x, weights, state.layers[index], state.position)
            self.stages.turn("router")
            self._decoding.add_experts(index, x, self._operations.norm(x, weights.post_norm))

    def _prefill(self, x: Tensor, state: State) -> None:
        """Many tokens [tokens, hidden] through all layers, in place."""
        for index, weights in enumerate(self._weights.layers):
            self._mix(x, weights, state.layers[index], state.position)
            self.stages.turn("router")
            normed = self._backend.shared(self._operations.norm(x, weights.post_norm))
            routes = self._operations.route(normed, weights, self._experts_per_token)
            self._backend.add(x, self._sweep(index, normed, routes))

    def _mix(self, x: Tensor, weights: LayerWeights, state: AttentionState | DeltaState, position: int) -> None:
        """x += the layer's mixer, a span of tokens at a time, which bounds the memory of its projections."""
        self.stages.turn("mixer")
        for first in range(0, len(x), SPAN):
            self._operations.add_mixed(x[first : first + SPAN], weights, state, position + first)

    def _sweep(self, index: int, normed: Tensor, routes: Routes) -> Tensor:
        """What all experts give to many tokens, one expert after the other."""
        backend, stages = self._backend, self.stages
        self._experts.learn(index, routes.ids)
        visits = {expert: (tokens, shares) for expert, tokens, shares in routes.by_expert()}
        out = backend.zeros(len(routes.ids), self._shape.hidden_size)
        stages.turn("reads")
        for expert, record in self._experts.records(index, list(visits), backend.lag):
            stages.turn("experts")
            backend.expert(out, normed, record, self._layouts[index], *visits[expert])
            stages.turn("reads")
        stages.turn("shared")
        self._operations.add_shared(out, normed, self._weights.layers[index])
        return out
