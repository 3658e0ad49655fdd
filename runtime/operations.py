"""The parts of a layer in a backend's operations, whoever drives them: engine, sweep, a token on its way.

Nothing here knows of sequences or of where weights come from.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ..manifests import schema
from .backends.base import AttentionWeights, Backend, Floats, Matrix, Routes, Stretch, Tensor
from .weights import LayerWeights

HEAD_ROWS = 32  # tokens that the output head sees together: their logits are what takes memory


class Operations:
    """A model's operations on a backend."""

    def __init__(self, shape: schema.Model, backend: Backend) -> None:
        self.shape = shape
        self.backend = backend

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm of each token."""
        return self.backend.rms_norm(x, weight, self.shape.rms_norm_eps)

    def mix(self, x: Tensor, weights: LayerWeights, stretches: Sequence[Stretch]) -> Tensor:
        """What the layer's mixer adds to residual rows `x`, which the stretches cover; advances their states."""
        return self.backend.linear(self._heads(x, weights, stretches), weights.mixer.out)

    def add_mixed(self, x: Tensor, weights: LayerWeights, stretches: Sequence[Stretch]) -> None:
        """x += that, in place."""
        self.backend.add_linear(x, self._heads(x, weights, stretches), weights.mixer.out)

    def route(self, normed: Tensor, weights: LayerWeights, experts_per_token: int) -> Routes:
        """The router's choice for normed tokens."""
        return self.backend.route(self.backend.linear(normed, weights.router), experts_per_token)

    def add_shared(self, to: Tensor, normed: Tensor, weights: LayerWeights) -> None:
        """to += sigmoid(gate) * the shared expert of normed tokens, in place."""
        self.backend.add_gated(to, *self.shared_expert(normed, weights))

    def shared_expert(self, normed: Tensor, weights: LayerWeights) -> tuple[Tensor, Tensor]:
        """The shared expert of normed tokens, and its gate before the sigmoid, [tokens, 1]."""
        backend, shared = self.backend, weights.shared
        backend.section("shared expert")
        inner = backend.swiglu(normed, shared.gate_proj, shared.up_proj)
        return backend.linear(inner, shared.down_proj), backend.linear(normed, shared.gate)

    def logits(self, x: Tensor, norm: Tensor, head: Matrix) -> Floats:
        """Logits [tokens, vocab] on the host, of rows of the residual stream."""
        found = list(self.logits_by_parts(x, norm, head))
        nothing = np.empty((0, self.shape.vocab_size), np.float32)
        return found[0] if len(found) == 1 else np.concatenate([nothing, *found])

    def logits_by_parts(self, x: Tensor, norm: Tensor, head: Matrix) -> Iterator[Floats]:
        """The same, some rows at a time."""
        self.backend.section("head")
        for first in range(0, len(x), HEAD_ROWS):
            yield self.backend.to_host(self.backend.linear(self.norm(x[first : first + HEAD_ROWS], norm), head))

    def _heads(self, x: Tensor, weights: LayerWeights, stretches: Sequence[Stretch]) -> Tensor:
        """What the mixer's heads give, before its output projection."""
        shape, mixer, eps = self.shape, weights.mixer, self.shape.rms_norm_eps
        self.backend.section("attention" if isinstance(mixer, AttentionWeights) else "delta net")
        normed = self.norm(x, weights.input_norm)
        if isinstance(mixer, AttentionWeights):
            return self.backend.attention(normed, mixer, stretches, shape.full_attention, eps)
        return self.backend.delta(normed, mixer, stretches, shape.linear_attention, eps)
