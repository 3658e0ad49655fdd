"""Calibrating in tests: a text, the command's steps without the command line, and transformers as the oracle."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import Shape, Variant, random_model

from moepack.convert.calibration.collector import Collector
from moepack.convert.calibration.plan import CalibrationPlan, Options, plan_calibration
from moepack.convert.calibration.run import Advance, calibrate
from moepack.convert.checkpoint import Checkpoint
from moepack.convert.reference import Reference
from moepack.manifests.progress import Silent
from moepack.runtime.backends.cpu import CpuBackend
from moepack.runtime.corpus import Corpus
from moepack.runtime.sweep import Sweep

FEW_VISITS = Shape(hidden=96, experts=24, experts_per_token=2, intermediate=64, shared_intermediate=64, vocab=300)
WINDOWS = 20
WINDOW = 24
TEXT_DIGEST = "7" * 64
CPU = CpuBackend(2)


def windows_of(shape: Shape, seed: int = 1) -> Corpus:
    """Windows of unequal length over a few words, so that some experts are never visited."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, WINDOW + 1, WINDOWS)
    return Corpus.of([random.integers(0, 9, length).tolist() for length in lengths])


def calibrated(
    checkpoint: Path,
    target: Path,
    corpus: Corpus,
    *,
    around: Callable[[Advance], Advance] = lambda advance: advance,
    **options: Any,
) -> CalibrationPlan:
    """Calibrate; `around` may wrap the step that takes the states through a layer."""
    with Checkpoint.open(str(checkpoint)) as opened:
        chosen = Options(WINDOW, **options)
        plan = plan_calibration(opened, corpus.starts, corpus.sequences, TEXT_DIGEST, chosen, through=None)
        sweep = Sweep(Reference(opened), CPU)
        stream = sweep.embed(corpus)

        def advance(layer: int, observer: Collector) -> None:
            sweep.advance(layer, stream, observer=observer)

        calibrate(plan, opened, target, stream.rows, around(advance), Silent())
    return plan


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
