"""/v1/completions with its prompt: what evaluation harnesses ask for to learn how likely a text is."""

from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from server.hosting import Hosted, hosted

ASKED: dict[str, Any] = {"model": "demo", "prompt": "def main():\n    return 'naïve'\n", "temperature": 0, "echo": True}


def completed(server: Hosted, **more: Any) -> Any:
    return server.openai().completions.create(**{**ASKED, **more})


def rows(server: Hosted, tokens: list[int]) -> np.ndarray:
    """Log probabilities after every token, by the engine's own way of scoring a text, in float64."""
    logits = server.service.engine.new_session().extend_all(tokens).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


@pytest.mark.parametrize("times", [1, 12])
@pytest.mark.parametrize("as_tokens", [False, True])
def test_a_prompt_s_logprobs_are_the_model_s(server: Hosted, times: int, as_tokens: bool) -> None:
    tokenizer = server.service.language.tokenizer
    text = ASKED["prompt"] * times
    tokens = tokenizer.encode(text, add_special_tokens=True)
    answer = completed(server, prompt=tokens if as_tokens else text, max_tokens=0, logprobs=5)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason, answer.usage.completion_tokens) == (text, "length", 0)
    found, wanted = choice.logprobs, rows(server, tokens)
    assert found.tokens == [tokenizer.decode([token], special=True) for token in tokens]
    assert found.text_offset == list(accumulate(map(len, found.tokens[:-1]), initial=0))
    assert found.token_logprobs[0] is found.top_logprobs[0] is None
    own = [row[token] for row, token in zip(wanted, tokens[1:], strict=False)]
    np.testing.assert_allclose(found.token_logprobs[1:], own, rtol=0, atol=1e-12)
    for row, top in zip(wanted, found.top_logprobs[1:], strict=False):
        np.testing.assert_allclose(max(top.values()), row.max(), rtol=0, atol=1e-12)
        assert all(value >= np.sort(row)[-5] - 1e-12 for value in top.values())


def test_a_long_prompt_is_read_in_parts(demo: Path) -> None:
    """And whole each time: what is remembered of it does not shorten what is told."""
    with hosted(demo, context=2048, chunk=100) as server:
        engine = server.service.engine
        prompt = "x = [1, 2, 3]\n" * 120
        plain = completed(server, prompt=prompt, max_tokens=0, logprobs=1)
        again = completed(server, prompt=prompt, max_tokens=0, logprobs=1)
        tokens = server.service.language.tokenizer.encode(prompt, add_special_tokens=True)
        assert again.choices[0].logprobs == plain.choices[0].logprobs
        assert again.usage.prompt_tokens_details.cached_tokens == 0
        session, own = engine.new_session(), list[float]()
        for token, after in pairwise(tokens):
            row = session.extend([token]).astype(np.float64)
            own.append(float(row[after] - row.max() - np.log(np.exp(row - row.max()).sum())))
        np.testing.assert_allclose(plain.choices[0].logprobs.token_logprobs[1:], own, rtol=0, atol=1e-12)


@pytest.mark.parametrize("more", [{}, {"logprobs": 2}, {"logprobs": 0}, {"logprobs": 1, "n": 3, "seed": 1}])
@pytest.mark.parametrize("longest", [0, 9])
def test_the_prompt_comes_before_the_answer_streamed_or_not(server: Hosted, longest: int, more: dict[str, Any]) -> None:
    more = {**more, "max_tokens": longest, "temperature": 1}
    more.setdefault("seed", 3)
    whole = completed(server, **more)
    chunks = [chunk.choices[0] for chunk in completed(server, **more, stream=True)]
    alone = completed(server, **{**more, "echo": False, "max_tokens": longest or 1})
    for choice, answer in zip(whole.choices, alone.choices, strict=True):
        own = [chunk for chunk in chunks if chunk.index == choice.index]
        assert "".join(chunk.text for chunk in own) == choice.text
        assert choice.text == ASKED["prompt"] + (answer.text if longest else "")
        if "logprobs" not in more:
            assert choice.logprobs is None
            continue
        prompt = whole.usage.prompt_tokens
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            columns = [each for chunk in own if chunk.logprobs for each in getattr(chunk.logprobs, name)]
            assert columns == getattr(choice.logprobs, name)
            assert len(columns) >= prompt
            if longest and name != "text_offset":
                assert columns[prompt:] == getattr(answer.logprobs, name)
    assert len(whole.choices) == more.get("n", 1)


def test_a_prompt_that_is_read_is_remembered(server: Hosted) -> None:
    prompt = "while True:\n    pass  # an endless loop\n" * 3
    completed(server, prompt=prompt, max_tokens=0, logprobs=1)
    answer = completed(server, prompt=prompt + "x", max_tokens=1, echo=False)
    assert answer.usage.prompt_tokens_details.cached_tokens > 0


def test_no_answer_at_all_needs_an_echo(server: Hosted) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        completed(server, echo=False, max_tokens=0)
    assert refused.value.param == "max_tokens"


def test_logits_that_are_none_fail_this_request_alone(server: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    from moepack.runtime.serving.answer import Likelihood

    def broken(*_: object) -> Likelihood:
        return Likelihood(1, float("nan"), ())

    with monkeypatch.context() as patch:
        patch.setattr(Likelihood, "of", broken)
        with pytest.raises(openai.InternalServerError, match="not finite"):
            completed(server, max_tokens=0, logprobs=1)
        patch.setattr(Likelihood, "of", None)
        with pytest.raises(openai.InternalServerError):
            completed(server, max_tokens=0, logprobs=1)
    assert completed(server, max_tokens=1).choices
