"""The statistics themselves: moments of what transformers' own experts see, in float64."""

from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from calibrating import FEW_VISITS, TEXT_DIGEST, WINDOW, WINDOWS, calibrated, windows_of
from checkpoints import TINY, CheckpointMaker, Variant
from expert_oracle import Oracle, by_transformers

from moepack.convert.calibration.file import CalibrationFile
from moepack.convert.calibration.sections import EXPERT_HESSIANS, FIT, HELD_OUT, Shape, choose
from moepack.convert.calibration.statistics import LayerStatistics
from moepack.convert.checkpoint import Checkpoint
from moepack.convert.plan import understand
from moepack.layout.record import PROJECTIONS
from moepack.manifests.digest import of_file
from moepack.quantize.calibration import CORRELATION_ONE, Moments

VARIANT = Variant(FEW_VISITS, dtype="float32")
TOLERANCE = 2e-4  # transformers works in float32 too; relative to the roots of both diagonal elements
GROUPS = ("input", "inner")


@pytest.fixture(scope="module")
def opened(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> CalibrationFile:
    path = tmp_path_factory.mktemp("calibration") / "c.moecal"
    calibrated(make_checkpoint(VARIANT), path, windows_of(FEW_VISITS))
    return CalibrationFile.open(path)


@pytest.fixture(scope="module")
def oracle() -> list[Oracle]:
    return by_transformers(VARIANT, windows_of(FEW_VISITS))


def halves() -> list[np.ndarray]:
    """Of each token, whether it is fitted to; whether it is held out: windows 8 and 16 of 20, counted from 1."""
    windows = np.arange(WINDOWS)
    held_out = np.repeat((windows == 7) | (windows == 15), np.diff(windows_of(FEW_VISITS).starts))
    return [~held_out, held_out]


def assert_moments(found: Moments, rows: np.ndarray) -> None:
    wanted = rows.T @ rows / max(len(rows), 1)
    diagonal = np.maximum(wanted.diagonal(), wanted.diagonal().mean() / 100 + 1e-30)
    assert np.allclose(found.diagonal, wanted.diagonal(), rtol=TOLERANCE, atol=1e-6)
    if found.correlations is not None:
        off = np.abs(found.matrix(found.diagonal) - wanted) / np.sqrt(np.outer(diagonal, diagonal))
        assert off.max() < TOLERANCE + 1 / CORRELATION_ONE


def test_some_experts_are_never_visited_and_others_often(oracle: list[Oracle]) -> None:
    counts = [np.bincount(layer.experts.ravel(), minlength=FEW_VISITS.experts) for layer in oracle]
    assert min(count.min() for count in counts) == 0
    assert max(count.max() for count in counts) > 40


@pytest.mark.parametrize("layer", range(FEW_VISITS.layers))
def test_each_experts_moments_are_those_that_transformers_shows(
    opened: CalibrationFile, oracle: list[Oracle], layer: int
) -> None:
    arrays = opened.layer(layer).arrays
    for expert in range(FEW_VISITS.experts):
        own = opened.expert(layer, expert)
        for half, tokens in enumerate(halves()):
            inputs, inner, weights = oracle[layer].visits(expert, tokens)
            assert arrays["visits"][half, expert] == len(weights)
            assert arrays["shares"][half, expert] == pytest.approx(weights.sum(), rel=1e-5)
            for group, rows in zip(GROUPS, (inputs, inner), strict=True):
                diagonal, correlations = arrays[f"{group}.diagonals"], own[f"{group}.correlations"]
                assert_moments(Moments(len(rows), diagonal[half, expert], correlations[half]), rows)


@pytest.mark.parametrize("layer", range(FEW_VISITS.layers))
def test_the_pools_are_of_every_token_and_of_every_visit(
    opened: CalibrationFile, oracle: list[Oracle], layer: int
) -> None:
    arrays = opened.layer(layer).arrays
    for half, tokens in enumerate(halves()):
        visits = [oracle[layer].visits(expert, tokens)[1] for expert in range(FEW_VISITS.experts)]
        for group, rows in (("input", oracle[layer].inputs[tokens]), ("inner", np.concatenate(visits))):
            diagonal, correlations = arrays[f"{group}.pool.diagonal"], arrays[f"{group}.pool.correlations"]
            assert_moments(Moments(len(rows), diagonal[half], correlations[half]), rows)


def test_gate_and_up_share_their_statistics_and_every_expert_has_some(opened: CalibrationFile) -> None:
    for layer in range(FEW_VISITS.layers):
        statistics = opened.layer(layer)
        for expert in range(FEW_VISITS.experts):
            found = statistics.of(expert, dict.fromkeys(PROJECTIONS, "gptq"))
            assert found["gate"] is found["up"]
            for projection, width in (("gate", FEW_VISITS.hidden), ("down", FEW_VISITS.intermediate)):
                given = found[projection]
                assert given.hessian is not None
                assert given.held_out is not None
                assert given.importance.shape == (width,)
                assert given.hessian.shape == given.held_out.shape == (width, width)
                assert np.isfinite(given.hessian).all()
                assert given.importance.min() > 0


def test_an_unvisited_expert_is_given_the_pool(opened: CalibrationFile) -> None:
    statistics = opened.layer(0)
    expert = int(np.flatnonzero(statistics.arrays["visits"][FIT] == 0)[0])
    found = statistics.of(expert, dict.fromkeys(PROJECTIONS, "imatrix"))
    assert np.array_equal(found["gate"].importance, statistics.arrays["input.pool.diagonal"][FIT])
    assert np.array_equal(found["down"].importance, statistics.arrays["inner.pool.diagonal"][FIT])


@pytest.mark.parametrize("kept", ["none", "inner"])
def test_less_can_be_kept_and_the_rest_is_the_same(
    make_checkpoint: CheckpointMaker, opened: CalibrationFile, tmp_path: Path, kept: str
) -> None:
    calibrated(make_checkpoint(VARIANT), tmp_path / "less", windows_of(FEW_VISITS), expert_hessians=kept)
    with CalibrationFile.open(tmp_path / "less") as less:
        for name, array in less.layer(1).arrays.items():
            assert np.array_equal(array, opened.layer(1).arrays[name]), name
        assert list(less.expert(1, 0)) == (["inner.correlations"] if kept == "inner" else [])
        for name, array in less.expert(1, 0).items():
            assert np.array_equal(array, opened.expert(1, 0)[name])
        found = less.layer(1).of(0, dict.fromkeys(PROJECTIONS, "gptq"))
        assert found["gate"].hessian is not None
        assert np.array_equal(found["gate"].hessian.diagonal(), found["gate"].importance)


def test_auto_keeps_the_most_that_fits(make_checkpoint: CheckpointMaker) -> None:
    with Checkpoint.open(str(make_checkpoint(VARIANT))) as checkpoint:
        model = understand(checkpoint).model
    sizes = {kept: Shape.of(model, kept).correlation_bytes for kept in EXPERT_HESSIANS}
    assert sizes["none"] < sizes["inner"] < sizes["all"]
    for kept, size in sizes.items():
        assert choose(model, "auto", size) == kept
        assert choose(model, kept, 0) == kept
    assert choose(model, "auto", 0) == "none"


def test_the_header_says_what_it_is_of(opened: CalibrationFile) -> None:
    text, model = opened.facts.text, opened.facts.model
    corpus = windows_of(FEW_VISITS)
    assert (text.digest, text.window, text.windows, text.held_out) == (TEXT_DIGEST, WINDOW, WINDOWS, 8)
    assert text.tokens == len(corpus)
    assert text.held_out_tokens == halves()[HELD_OUT].sum()
    assert (model.layers, model.experts, model.experts_per_token) == (4, 24, 2)
    assert opened.facts.through is None


def test_tokenizer_and_model_are_named_by_digests(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    source = make_checkpoint(Variant(TINY))
    calibrated(source, tmp_path / "c", windows_of(TINY))
    with CalibrationFile.open(tmp_path / "c") as opened:
        assert opened.facts.model.tokenizer_digest == of_file(source / "tokenizer.json")
        assert opened.digest == blake3((tmp_path / "c").read_bytes()[:-32]).hexdigest()


def test_only_what_a_method_needs_is_read(opened: CalibrationFile) -> None:
    read: list[int] = []
    layer = opened.layer(0)
    statistics = LayerStatistics(layer.tokens, layer.arrays, lambda expert: read.append(expert) or layer.own(expert))
    assert statistics.of(3, {"gate": "mse", "down": "minmax"}) == {}
    found = statistics.of(3, {"gate": "mse", "up": "imatrix", "down": "imatrix"})
    assert list(found) == ["up", "down"]
    assert found["up"].hessian is found["up"].held_out is None
    assert read == []
    found = statistics.of(3, {"gate": "imatrix", "up": "imatrix", "down": "gptq"})
    assert found["gate"].hessian is None
    assert found["down"].hessian is not None
    assert read == [3]
