"""`best_of` above `n`: more answers are computed, and the likeliest of each prompt are told."""

import math
from typing import Any

import openai
import pytest
from server.hosting import Hosted
from server.test_choices import told

from moepack.runtime.server.likelihoods import Mean
from moepack.runtime.serving.answer import Likelihood

TEXTS = ["def main():", "import numpy as"]
WARM: dict[str, Any] = {"temperature": 1.5, "max_tokens": 12, "logprobs": 2, "seed": 11}


def asked(server: Hosted, prompt: Any = TEXTS[0], **more: Any) -> Any:
    return server.openai().completions.create(model="demo", prompt=prompt, **{**WARM, **more})


def mean(choice: Any) -> float:
    found = choice.logprobs.token_logprobs
    return sum(found) / len(found)


@pytest.mark.parametrize("n", [1, 2])
def test_the_likeliest_of_each_prompt_are_told_the_best_first(server: Hosted, n: int) -> None:
    every, best = asked(server, TEXTS, n=5), asked(server, TEXTS, n=n, best_of=5)
    ranked = [sorted(every.choices[first : first + 5], key=mean, reverse=True)[:n] for first in (0, 5)]
    assert ranked != [every.choices[first : first + n] for first in (0, 5)]
    assert [told(choice) for choice in best.choices] == [told(choice) for own in ranked for choice in own]
    assert [choice.index for choice in best.choices] == list(range(2 * n))
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(best.usage, name) == getattr(every.usage, name)


def test_they_are_the_same_without_logprobs_and_with_an_echo(server: Hosted) -> None:
    best = asked(server, best_of=4).choices[0]
    for more, before in (({}, ""), ({"echo": True}, TEXTS[0])):
        plain = asked(server, best_of=4, logprobs=None, **more).choices[0]
        assert (plain.text, plain.logprobs) == (before + best.text, None)


def test_of_answers_without_a_token_any_other_is_likelier(server: Hosted) -> None:
    more = {"logit_bias": {str(token): 13 for token in server.service.language.tokenizer.end_tokens}}
    every = asked(server, n=8, **more)
    some = sum(bool(choice.logprobs.tokens) for choice in every.choices)
    assert 0 < some < 7
    best = asked(server, n=7, best_of=8, **more)
    assert [bool(choice.logprobs.tokens) for choice in best.choices] == [True] * some + [False] * (7 - some)


def test_nothing_is_less_likely_than_any_token() -> None:
    found = Mean()
    assert found.value == -math.inf
    for logprob in (-1e9, 0.0):
        found.add(Likelihood(1, logprob, ()))
    assert found.value == -5e8


def test_as_many_as_are_computed_are_in_the_order_of_their_seeds(server: Hosted) -> None:
    assert asked(server, n=3, best_of=3).choices == asked(server, n=3).choices


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2, "best_of": 1},
        {"best_of": 9},
        {"best_of": 0},
        {"best_of": 2, "stream": True},
        {"best_of": 2, "echo": True},
    ],
)
def test_what_cannot_be_ranked_is_refused(server: Hosted, more: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        asked(server, **more)
    assert refused.value.param == "best_of"
    assert refused.value.body["type"] == "invalid_request_error"
