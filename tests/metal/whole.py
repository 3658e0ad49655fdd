"""Whole models on the Metal backend and on the CPU's, side by side: packs, and what is asked of both."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from checkpoints import NARROW, ODD, TINY, CheckpointMaker, Shape, Variant
from packs import build_pack, build_with, with_random_experts

from moepack.convert.recipe import Recipe
from moepack.convert.shipped import CHECKPOINT
from moepack.layout.formats import parse
from moepack.layout.record import PROJECTIONS
from moepack.runtime.backends.metal.backend import MetalBackend
from moepack.runtime.engine import Engine, EngineOptions, Session

MEMORY = 2 * 10**9
TOLERANCE = 1e-3  # largest absolute difference of any logit

CASES = {  # checkpoint, experts, trunk
    "odd": (Variant(ODD, dtype="float16"), "affine4-g64", "source"),
    "narrow": (Variant(NARROW, dtype="float32"), "affine2-g32", "source"),
    "tied": (
        Variant(Shape(hidden=256, intermediate=128, tied=True, layers=3, interval=3, seed=5)),
        "affine2-g128",
        "affine4-g64",
    ),
    "wide-heads": (
        Variant(Shape(layers=2, heads=2, kv_heads=1, head_dim=256, interval=2, theta=1e7, seed=6)),
        "book2-g8",
        "affine8-g64",
    ),
}
MIXED = ("affine2-g16s", "affine3-g64", "book3-g8")  # gate, up, down


class Packs:
    """Packs by name, each made when it is first asked for."""

    def __init__(self, folder: Path, checkpoints: CheckpointMaker) -> None:
        self._folder = folder
        self._checkpoints = checkpoints

    def __getitem__(self, name: str) -> Path:
        target = self._folder / name
        if not target.exists():
            self._make(name, target)
        return target

    def _make(self, name: str, target: Path) -> None:
        if name == "demo":
            build_with(CHECKPOINT, target, Recipe())
        elif name == "mixed":
            source = self._folder / "before-mixed"
            packing = build_pack(self._checkpoints(Variant(TINY)), source)
            formats = {projection: parse(each) for projection, each in zip(PROJECTIONS, MIXED, strict=True)}
            with_random_experts(source, packing.plan, target, formats)
        else:
            variant, experts, trunk = CASES[name]
            build_pack(self._checkpoints(variant), target, expert_format=experts, trunk=trunk)


@contextmanager
def on_metal(pack: Path, **options: object) -> Iterator[Engine]:
    """An engine on the Metal backend."""
    given: dict[str, object] = {"threads": 2, "memory": MEMORY, "context": 512} | options
    with Engine.open(pack, EngineOptions(backend="metal", **given)) as engine:  # type: ignore[arg-type]
        yield engine


@contextmanager
def on_cpu(pack: Path, **options: object) -> Iterator[Engine]:
    """One on the CPU's, whose activations are float32 too."""
    given: dict[str, object] = {"threads": 2, "memory": MEMORY, "context": 512, "exact": True} | options
    with Engine.open(pack, EngineOptions(backend="cpu", **given)) as engine:  # type: ignore[arg-type]
        yield engine


def backend_of(engine: Engine) -> MetalBackend:
    """The engine's backend, for what only this one has."""
    assert isinstance(engine.backend, MetalBackend)
    return engine.backend


@dataclass
class Answers:
    """A prompt and what follows: logits after each step, and the tokens."""

    logits: list[np.ndarray]
    tokens: list[int]


def greedy(session: Session, prompt: list[int], count: int) -> Answers:
    """The likeliest token after the prompt, and after each of them, `count` of them."""
    found = Answers([session.extend(prompt)], [])
    while True:
        found.tokens.append(int(found.logits[-1].argmax()))
        if len(found.tokens) == count:
            return found
        found.logits.append(session.extend([found.tokens[-1]]))


def along(session: Session, prompt: list[int], tokens: list[int]) -> list[np.ndarray]:
    """Logits after the prompt, and after each of these tokens but the last."""
    return [session.extend(prompt), *(session.extend([token]) for token in tokens[:-1])]


def farthest(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """The largest absolute difference."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))
