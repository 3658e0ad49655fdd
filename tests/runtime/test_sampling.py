"""Sampling against transformers' warpers: the same kept tokens, the same probabilities; and what it promises itself."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from moepack.manifests.errors import CorruptInputError, UsageError
from moepack.runtime.sampling import Sampler, Sampling, distribution, unsupported


def warped(logits: np.ndarray, settings: Sampling) -> np.ndarray:
    """transformers' probabilities [V], in float64, in the order that its generate() applies the warpers."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(settings.temperature))])
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))
    warpers.append(MinPLogitsWarper(settings.min_p))
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    return torch.softmax(warpers(torch.zeros(1, 1, dtype=torch.long), scores), -1)[0].numpy()


settings = st.builds(
    Sampling,
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 80),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
)


UNDERFLOW = 1e-37  # float32, which transformers computes in, has nothing or only denormals below


@given(settings, st.integers(0, 2**32), st.sampled_from([1, 2, 7, 64]), st.floats(0.1, 20))
def test_kept_tokens_and_probabilities_are_those_of_transformers(
    settings: Sampling, seed: int, size: int, spread: float
) -> None:
    logits = (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)
    expected = warped(logits, settings)
    tokens, probabilities = distribution(logits, settings)
    tokens, probabilities = tokens[probabilities > UNDERFLOW], probabilities[probabilities > UNDERFLOW]
    assert tokens.tolist() == np.flatnonzero(expected > UNDERFLOW).tolist()
    np.testing.assert_allclose(probabilities, expected[tokens], rtol=1e-9)


def test_ties_at_the_top_k_boundary_are_all_kept_as_in_transformers() -> None:
    logits = np.array([1, 3, 2, 2, 2, 0], np.float32)
    settings = Sampling(temperature=1, top_k=2)
    tokens, probabilities = distribution(logits, settings)
    assert tokens.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(probabilities, warped(logits, settings)[tokens], rtol=1e-12)


def test_large_vocabularies_agree_too() -> None:
    logits = (np.random.default_rng(3).standard_normal(248_320) * 3).astype(np.float32)
    settings = Sampling(temperature=0.6, top_k=20, top_p=0.95)
    tokens, probabilities = distribution(logits, settings)
    np.testing.assert_allclose(probabilities, warped(logits, settings)[tokens], rtol=1e-9)
    assert 1 < len(tokens) <= 20


def test_draws_follow_the_distribution() -> None:
    logits = np.array([2, 1, 0, -1, 3], np.float32)
    settings = Sampling(temperature=0.8, top_k=4, seed=5)
    sampler = Sampler(settings)
    counts = np.bincount([sampler.choose(logits) for _ in range(20_000)], minlength=5) / 20_000
    tokens, probabilities = distribution(logits, settings)
    np.testing.assert_allclose(counts[tokens], probabilities, atol=0.012)  # over 3 standard errors
    assert counts[3] == 0


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)

    def draw(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1, seed=seed))
        return [sampler.choose(logits) for _ in range(50)]

    assert draw(7) == draw(7) != draw(8)


def test_draws_are_pinned_so_that_no_release_changes_them() -> None:
    sampler = Sampler(Sampling(temperature=1, seed=42))
    assert [sampler.choose(np.zeros(10, np.float32)) for _ in range(8)] == [7, 4, 8, 6, 0, 9, 7, 7]


def test_one_draw_per_token_whatever_the_logits() -> None:
    sampler, reference = Sampler(Sampling(temperature=1, top_k=1, seed=3)), np.random.Generator(np.random.PCG64(3))
    for _ in range(5):
        sampler.choose(np.arange(4, dtype=np.float32))
    reference.random(5)
    assert sampler._random.random() == reference.random()


def test_without_a_seed_a_run_can_still_be_repeated() -> None:
    first = Sampler(Sampling(temperature=1))
    again = Sampler(first.settings)
    logits = np.zeros(1000, np.float32)
    assert [first.choose(logits) for _ in range(9)] == [again.choose(logits) for _ in range(9)]


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert Sampler(Sampling()).choose(np.array([0, 5, 5, 1], np.float32)) == 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-6])
def test_a_tiny_temperature_is_greedy_without_overflow(temperature: float) -> None:
    logits = np.array([-(10.0**38), 1, 1.5, 10.0**38], np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert Sampler(Sampling(temperature=temperature)).choose(logits) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_never_a_token(bad: float, temperature: float) -> None:
    logits = np.array([1, bad, 2], np.float32)
    with pytest.raises(CorruptInputError, match="not finite"):
        Sampler(Sampling(temperature=temperature)).choose(logits)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 1.01},
        {"top_p": -0.1},
        {"top_k": -1},
        {"min_p": 2.0},
        {"min_p": float("nan")},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_usage_errors(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Sampling(**values)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Sampling()),
        ({"temperature": 0.6, "top_k": 20}, Sampling(0.0, top_k=20)),
        ({"do_sample": False, "temperature": 0.6}, Sampling(0.0)),
        ({"do_sample": True}, Sampling(1.0)),
        ({"do_sample": True, "temperature": None, "top_k": None, "top_p": None}, Sampling(1.0)),
        ({"do_sample": True, "temperature": 0}, Sampling(0.0)),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1},
            Sampling(0.6, 0.95, 20, 0.1),
        ),
    ],
)
def test_defaults_come_from_the_generation_config(config: dict[str, Any], expected: Sampling) -> None:
    GenerationConfig.from_dict(config)  # all of them are ones transformers accepts
    assert Sampling.from_config(config, "generation_config.json") == expected


@pytest.mark.parametrize(
    "config",
    [
        {"temperature": "hot"},
        {"temperature": -1},
        {"temperature": 10**400},
        {"temperature": 1e309},
        {"top_p": 3},
        {"top_p": True},
        {"top_k": 2.5},
        {"top_k": -1},
        {"top_k": True},
        {"min_p": [0.1]},
    ],
)
def test_a_malformed_generation_config_is_corrupt_input(config: dict[str, Any]) -> None:
    with pytest.raises(CorruptInputError, match=r"generation_config\.json: "):
        Sampling.from_config({"do_sample": True, **config}, "generation_config.json")


def test_what_a_model_asks_for_and_we_do_not_do_is_named() -> None:
    config = {"repetition_penalty": 1.05, "no_repeat_ngram_size": 0, "typical_p": None, "temperature": 0.7}
    assert unsupported(config) == ["repetition_penalty"]
