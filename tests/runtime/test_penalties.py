"""Penalties and biases against transformers' processor and OpenAI's formula, and before what a grammar allows."""

from typing import Any

import numpy as np
import pytest
import torch
from front import byte_level
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from moepack.runtime.generate import Limits, Steps
from moepack.runtime.penalties import Penalizer, Penalties
from moepack.runtime.sampling import Allowed, Sampler, Sampling
from moepack.runtime.tokenizer import Tokenizer

SIZE = 12
TOKENS = st.lists(st.integers(0, SIZE - 1), max_size=20)
LOGITS = st.lists(st.floats(-50, 50, width=32), min_size=SIZE, max_size=SIZE)


def adjusted(penalties: Penalties, logits: list[float], prompt: list[int], said: list[int]) -> Any:
    penalizer = Penalizer(penalties, prompt)
    for token in said:
        penalizer.take(token)
    return penalizer.adjusted(np.array(logits, np.float32))


@given(logits=LOGITS, prompt=TOKENS, said=TOKENS, penalty=st.floats(0.01, 100))
def test_repeating_costs_what_it_does_in_transformers(
    logits: list[float], prompt: list[int], said: list[int], penalty: float
) -> None:
    seen = torch.tensor([[*prompt, *said]], dtype=torch.long)
    given_logits = torch.tensor([logits], dtype=torch.float64)
    wanted = RepetitionPenaltyLogitsProcessor(penalty)(seen, given_logits)[0].numpy()
    np.testing.assert_array_equal(adjusted(Penalties(repetition=penalty), logits, prompt, said), wanted)


@given(logits=LOGITS, prompt=TOKENS, said=TOKENS, presence=st.floats(-2, 2), frequency=st.floats(-2, 2))
def test_what_was_said_costs_what_the_protocol_says(
    logits: list[float], prompt: list[int], said: list[int], presence: float, frequency: float
) -> None:
    wanted = np.array(logits, np.float64)
    for token in range(SIZE):  # mu[j] -= c[j] * alpha_frequency + (c[j] > 0) * alpha_presence
        wanted[token] -= said.count(token) * frequency + (said.count(token) > 0) * presence
    found = adjusted(Penalties(presence, frequency), logits, prompt, said)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_biases_come_after_penalties() -> None:
    found = adjusted(Penalties(1.0, 0.5, 2.0, {1: -100.0, 3: 7.0}), [8.0] * SIZE, [2, 3], [1, 1])
    assert found.tolist() == [8, 4 - 2 - 100, 4, 4 + 7] + [8.0] * (SIZE - 4)


def test_logits_stay_the_same_when_nothing_is_asked_for() -> None:
    logits = np.arange(SIZE, dtype=np.float32)
    penalizer = Penalizer(Penalties(), [1, 2])
    penalizer.take(3)
    assert penalizer.adjusted(logits) is logits


class Only:
    """Allows two tokens, always."""

    def __init__(self, size: int) -> None:
        self._mask = np.zeros(size, np.bool_)
        self._mask[[4, 5]] = True

    def allowed(self) -> Allowed:
        return self._mask

    def take(self, token: int) -> None:
        assert self._mask[token]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_bias_breaks_a_constraint(temperature: float) -> None:
    vocabulary = byte_level()
    size = vocabulary.get_vocab_size()
    stream = Tokenizer(vocabulary, size, [size - 1], {}).stream()
    penalizer = Penalizer(Penalties(biases={7: 100.0, 5: 50.0, 4: -100.0}), [])
    sampler = Sampler(Sampling(temperature=temperature, seed=1))
    steps = Steps(sampler, stream, Limits(9, 99), 9, Only(size), penalizer)
    assert steps.choose(np.zeros(size, np.float32)) == 5


def test_an_answer_s_own_tokens_count_as_it_goes_on() -> None:
    vocabulary = byte_level()
    size = vocabulary.get_vocab_size()
    stream = Tokenizer(vocabulary, size, [size - 1], {}).stream()
    steps = Steps(Sampler(Sampling()), stream, Limits(9, 99), 9, None, Penalizer(Penalties(frequency=1.0), [1]))
    logits = np.zeros(size, np.float32)
    logits[1:4] = 2.5, 2.0, 0.75
    found = []
    for _ in range(6):
        found.append(steps.choose(logits))
        steps.push(found[-1])
    assert found == [1, 2, 1, 2, 3, 1]
