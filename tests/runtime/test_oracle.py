"""Against the reference implementations: transformers in float32, and mlx_lm on its own 4-bit checkpoint.

transformers runs eagerly, with the pack's dequantized weights (tests/oracle.py). mlx_lm computes in bf16 by default, so
every floating-point parameter of its model, scales and biases of quantized ones included, is cast to float32 first
(exact: float32 holds every bf16), after which MLX computes in float32 throughout.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import NARROW, ODD, TINY, CheckpointMaker, Shape, Variant
from oracle import reference_model
from packs import build_pack, build_with, with_random_experts

from moepack.convert.recipe import Coding, Recipe
from moepack.layout.formats import FORMATS, parse
from moepack.layout.record import PROJECTIONS
from moepack.manifests.progress import Silent
from moepack.manifests.verify import verify
from moepack.runtime.backends.base import Routes
from moepack.runtime.backends.cpu import CpuBackend
from moepack.runtime.engine import Engine, EngineOptions

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("MOEPACK_SHARED", ROOT.parent / "shared"))
TRAINED = {"trained-66m": SHARED / "models" / "trained-66m", "demo": ROOT / "convert" / "demo" / "checkpoint"}
TOLERANCE = 1e-3  # largest absolute difference of any logit
GREEDY_TOKENS = 64
HONEST_TIE = 2e-5  # ours and the oracles' router logits differ by a few millionths
Forward = Callable[[list[int]], np.ndarray]  # tokens -> logits [tokens, vocab]

RANDOM = {
    "tiny-2bit": (Variant(TINY), "affine2-g64"),
    "odd-4bit": (Variant(ODD, dtype="float16"), "affine4-g64"),
    "narrow-2bit": (Variant(NARROW, dtype="float32"), "affine2-g32"),
    "g128-tied": (
        Variant(Shape(hidden=256, intermediate=128, tied=True, layers=3, interval=3, seed=5)),
        "affine2-g128",
    ),
    "wide-heads": (Variant(Shape(heads=2, kv_heads=1, head_dim=256, interval=2, theta=1e7, seed=6)), "affine2-g64"),
}
MIXED = {  # gate, up, down: each grid format once
    "two-level": ("affine2-g16s", "affine3-g16s", "affine2-g32s"),
    "books": ("book2-g8", "book2-g16", "book3-g8"),
    "mixed": ("affine3-g32s", "affine3-g64", "book3-g16"),
}
LONG = {"linear": Shape(layers=2, interval=3, seed=7), "full": Shape(layers=2, interval=1, seed=8)}
LONG_TOKENS = 700
LEAST_DISTINCT = 8  # tokens in a random model's continuation: one that repeats a token would prove nothing


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Its threads spin: on a busy machine two of them take fifty times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Spied(CpuBackend):
    """Remembers how close the router came to choosing another expert, in logits."""

    closest = np.inf

    def route(self, logits: np.ndarray, k: int) -> Routes:
        ordered = np.sort(logits, axis=1)
        self.closest = min(self.closest, float((ordered[:, -k] - ordered[:, -k - 1]).min()))
        return super().route(logits, k)


def ours(path: Path) -> tuple[list[int], np.ndarray]:
    """A prompt continued greedily, all tokens, and the logits after each but the last.

    Two experts within rounding of each other are an honest tie: implementations that agree to the sixth digit then
    choose differently, and everything after differs visibly. The prompt is one that meets no such tie.
    """
    with Engine.open(path, EngineOptions(chunk=20, exact=True)) as engine:
        engine.backend.__class__ = Spied
        engine._decoder._decoding._foresee = lambda *guess: None  # type: ignore  # ties of a guess are none
        tokens, logits = continued(engine)
        choices = np.sort(logits[-GREEDY_TOKENS - 1 : -1], axis=1)
        closest = min(engine.backend.closest, float((choices[:, -1] - choices[:, -2]).min()))  # type: ignore[attr-defined]
    assert closest > HONEST_TIE
    return tokens, logits


def continued(engine: Engine) -> tuple[list[int], np.ndarray]:
    random = np.random.default_rng(0)
    session, tokens = engine.new_session(), list(map(int, random.integers(0, engine.model.vocab_size, 48)))
    rows = [session.extend_all(tokens)]
    for _ in range(GREEDY_TOKENS):
        tokens.append(int(rows[-1][-1].argmax()))
        rows.append(session.extend_all(tokens[-1:]))
    return tokens, np.concatenate(rows)


def check(path: Path, oracle: Forward, *, least_distinct: int = 1) -> None:
    """Given our tokens, the oracle has our logits and chooses each greedy token itself, so it generates the same."""
    tokens, logits = ours(path)
    assert len(set(tokens[-GREEDY_TOKENS:])) >= least_distinct
    wanted = oracle(tokens)
    difference = float(np.abs(logits - wanted).max())
    print(f"{path.name}: largest difference {difference:.2e}, standard deviation {wanted.std():.2f}")
    assert difference <= TOLERANCE
    assert wanted[-GREEDY_TOKENS - 1 : -1].argmax(-1).tolist() == tokens[-GREEDY_TOKENS:]


def transformers_of(path: Path) -> Forward:
    model = reference_model(path)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")

    def forward(tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()

    return forward


@pytest.mark.parametrize("case", RANDOM)
def test_random_models_agree_with_transformers(case: str, make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    variant, expert_format = RANDOM[case]
    build_pack(make_checkpoint(variant), tmp_path / case, expert_format=expert_format)
    check(tmp_path / case, transformers_of(tmp_path / case), least_distinct=LEAST_DISTINCT)


@pytest.mark.parametrize("case", MIXED)
def test_experts_in_grid_formats_agree_with_transformers(
    case: str, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    packing = build_pack(make_checkpoint(Variant(TINY)), tmp_path / "plain")
    formats = {name: parse(format_) for name, format_ in zip(PROJECTIONS, MIXED[case], strict=True)}
    with_random_experts(tmp_path / "plain", packing.plan, tmp_path / case, formats)
    check(tmp_path / case, transformers_of(tmp_path / case), least_distinct=LEAST_DISTINCT)


def test_a_mixed_recipe_agrees_with_transformers(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    """Every layer and projection in a format of its own, the trunk of 4 and 8 bits."""
    names = [format_.name for format_ in FORMATS if format_.fits(TINY.intermediate)]
    codings = tuple(
        {name: Coding(parse(names[(5 * layer + index) % len(names)])) for index, name in enumerate(PROJECTIONS)}
        for layer in range(TINY.layers)
    )
    build_with(make_checkpoint(Variant(TINY)), tmp_path / "mixed", Recipe.of(codings, "affine4-g64"))
    assert verify(tmp_path / "mixed", threads=2, progress=Silent()).ok
    check(tmp_path / "mixed", transformers_of(tmp_path / "mixed"), least_distinct=LEAST_DISTINCT)


@pytest.mark.parametrize("kind", LONG)
def test_long_sequences_agree_with_transformers(kind: str, make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    """Layers of one type each, many chunks, positions far from the start."""
    build_pack(make_checkpoint(Variant(LONG[kind])), tmp_path / kind)
    with Engine.open(tmp_path / kind, EngineOptions(chunk=64, exact=True)) as engine:
        assert set(engine.model.layer_types) == {f"{kind}_attention"}
        engine.backend.__class__ = Spied
        tokens = list(map(int, np.random.default_rng(0).integers(0, engine.model.vocab_size, LONG_TOKENS)))
        logits = engine.new_session().extend_all(tokens)
        assert engine.backend.closest > HONEST_TIE  # type: ignore[attr-defined]
    assert np.abs(logits - transformers_of(tmp_path / kind)(tokens)).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "trunk"), [("trained-66m", "source"), ("trained-66m", "affine8-g64"), ("demo", "source"), ("demo", "bf16")]
)
def test_trained_models_agree_with_transformers(name: str, trunk: str, tmp_path: Path) -> None:
    if name != "demo" and not (TRAINED[name] / "config.json").exists():  # the demo is in the repository
        pytest.skip(f"{name} is not here")
    build_pack(TRAINED[name], tmp_path / name, trunk=trunk)
    check(tmp_path / name, transformers_of(tmp_path / name))


def mlx_of(checkpoint: Path) -> Forward:
    import mlx.core as mlx
    from mlx.utils import tree_map
    from mlx_lm.utils import load_model

    def widened(parameter: Any) -> Any:
        return parameter.astype(mlx.float32) if mlx.issubdtype(parameter.dtype, mlx.floating) else parameter

    model, _ = load_model(checkpoint)
    model.update(tree_map(widened, model.parameters()))
    return lambda tokens: np.asarray(model(mlx.array([tokens]))[0])


@pytest.mark.parametrize("shape", [TINY, ODD], ids=["tiny", "odd"])
def test_its_own_4_bit_checkpoint_agrees_with_mlx(
    shape: Shape, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(Variant(shape, dialect="mlx", bits=4))
    build_pack(checkpoint, tmp_path / "mlx", expert_format="affine4-g64")
    check(tmp_path / "mlx", mlx_of(checkpoint), least_distinct=LEAST_DISTINCT)


def test_the_demo_checkpoint_agrees_with_mlx(tmp_path: Path) -> None:
    checkpoint = TRAINED["demo"]
    build_pack(checkpoint, tmp_path / "mlx", expert_format="affine4-g64")
    check(tmp_path / "mlx", mlx_of(checkpoint))
