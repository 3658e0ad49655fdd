"""What the experts of transformers' own model see of a text: the oracle of calibrations.

Tests name these classes in annotations, which pytest keeps beyond the interpreter's end where torch is loaded, and with
them all that this file holds: so nothing native may be imported here, or its types would be reported as leaked.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from checkpoints import Variant, random_model

from moepack.runtime.corpus import Corpus


@dataclass
class Seen:
    """What transformers' experts of one layer saw: rows in float64, token by token of all windows joined."""

    inputs: list[np.ndarray] = field(default_factory=list)
    experts: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)

    def keep(self, _: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        for kept, tensor in zip((self.inputs, self.experts, self.weights), arguments, strict=True):
            kept.append(tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy())

    def joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.concatenate(self.inputs), np.concatenate(self.experts), np.concatenate(self.weights)


@dataclass(frozen=True)
class Oracle:
    """One layer's experts as transformers ran them."""

    inputs: np.ndarray  # [tokens, hidden]
    experts: np.ndarray  # [tokens, K]
    weights: np.ndarray  # [tokens, K]
    gate_up: np.ndarray  # [experts, 2 intermediate, hidden]

    def visits(self, expert: int, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(inputs, inner times the route's weight, the route's weights) of an expert's visits among `tokens`."""
        token, place = np.nonzero((self.experts == expert) & tokens[:, None])
        inputs, weights = self.inputs[token], self.weights[token, place]
        gate, up = np.split(inputs @ self.gate_up[expert].T, 2, axis=1)
        return inputs, gate / (1 + np.exp(-gate)) * up * weights[:, None], weights


def by_transformers(variant: Variant, corpus: Corpus) -> list[Oracle]:
    """The experts' rows of every layer, from hooks on transformers' own model."""
    model = random_model(variant.shape, variant.dtype).float()
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    layers = [layer.mlp.experts for layer in model.model.layers]
    seen = [Seen() for _ in layers]
    for experts, keeper in zip(layers, seen, strict=True):
        experts.register_forward_pre_hook(keeper.keep)
    with torch.no_grad():
        for first, last in corpus.bounds():
            model(torch.tensor([corpus.tokens[first:last].tolist()]), use_cache=False)
    weights = [experts.gate_up_proj.detach().double().numpy() for experts in layers]
    return [Oracle(*kept.joined(), gate_up) for kept, gate_up in zip(seen, weights, strict=True)]
