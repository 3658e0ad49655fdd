"""/v1/completions with its prompt: what evaluation harnesses ask for to learn how likely a text is."""

import time
import tracemalloc
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import openai
import pytest
from server.hosting import Hosted, hosted
from server.test_manners import until

from moepack.layout.reader import Pack
from moepack.runtime.server import allowance, service
from moepack.runtime.server.allowance import PROMPT_BYTES
from moepack.runtime.server.completions import CompletionRequest, CompletionShape, wish
from moepack.runtime.serving.answer import Ended, Likelihood, Said, Scorer
from moepack.runtime.serving.scheduler import BusyError
from moepack.runtime.tokenizer import Tokenizer

ASKED: dict[str, Any] = {"model": "demo", "prompt": "def main():\n    return 'naïve'\n", "temperature": 0, "echo": True}


def completed(server: Hosted, **more: Any) -> Any:
    return server.openai().completions.create(**{**ASKED, **more})


def rows(server: Hosted, tokens: list[int]) -> np.ndarray:
    """Log probabilities after every token, by the engine's own way of scoring a text, in float64."""
    logits = server.session().extend_all(tokens).astype(np.float64)
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
        prompt = "x = [1, 2, 3]\n" * 120
        plain = completed(server, prompt=prompt, max_tokens=0, logprobs=1)
        again = completed(server, prompt=prompt, max_tokens=0, logprobs=1)
        tokens = server.service.language.tokenizer.encode(prompt, add_special_tokens=True)
        assert again.choices[0].logprobs == plain.choices[0].logprobs
        assert again.usage.prompt_tokens_details.cached_tokens == 0
        session, own = server.session(), list[float]()
        for token, after in pairwise(tokens):
            row = session.extend([token]).astype(np.float64)
            own.append(float(row[after] - row.max() - np.log(np.exp(row - row.max()).sum())))
        np.testing.assert_allclose(plain.choices[0].logprobs.token_logprobs[1:], own, rtol=0, atol=1e-12)


@pytest.mark.parametrize("more", [{}, {"logprobs": 2}, {"logprobs": 0}, {"n": 3, "seed": 1}])
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
                told = getattr(answer.logprobs, name)
                assert columns[prompt:][: len(told)] == told
                assert len(columns) - prompt - len(told) == (choice.finish_reason == "stop")  # the end token
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
    def broken(*_: object) -> Likelihood:
        return Likelihood(1, float("nan"), ())

    with monkeypatch.context() as patch:
        patch.setattr(Likelihood, "of", broken)
        with pytest.raises(openai.InternalServerError, match="not finite"):
            completed(server, max_tokens=0, logprobs=1)
        patch.setattr(Likelihood, "of", None)
        with pytest.raises(openai.InternalServerError):
            completed(server, max_tokens=0, logprobs=1)
    assert completed(server, max_tokens=1, logprobs=1).choices


@pytest.mark.parametrize("longest", [1, 5])
def test_an_answer_that_ends_at_once_has_the_row_that_harnesses_leave_out(server: Hosted, longest: int) -> None:
    tokenizer = server.service.language.tokenizer
    tokens, end = tokenizer.encode(ASKED["prompt"], add_special_tokens=True), min(tokenizer.end_tokens)
    asked = {"max_tokens": longest, "logprobs": 1, "logit_bias": {str(end): 100}}
    answer, wanted = completed(server, **asked), rows(server, tokens)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason, answer.usage.completion_tokens) == (ASKED["prompt"], "stop", 0)
    found = choice.logprobs.token_logprobs
    np.testing.assert_allclose(found[-1], wanted[-1][end], rtol=0, atol=1e-12)  # the model's own, without the bias
    own = [row[token] for row, token in zip(wanted, tokens[1:], strict=False)]
    for context in (1, 4):
        np.testing.assert_allclose(sum(found[context:-1]), sum(own[context - 1 :]), rtol=0, atol=1e-9)
    chunks = [chunk.choices[0] for chunk in completed(server, **asked, stream=True)]
    assert [each for chunk in chunks if chunk.logprobs for each in chunk.logprobs.token_logprobs] == found
    assert completed(server, **asked, echo=False).choices[0].logprobs.tokens == []


def test_a_prompt_is_told_for_one_answer_and_only_so_long(server: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(openai.BadRequestError, match="one answer") as refused:
        completed(server, max_tokens=0, logprobs=1, n=2)
    assert refused.value.param == "n"
    long = completed(server, max_tokens=0, logprobs=0).usage.prompt_tokens
    monkeypatch.setattr(allowance, "MOST", 3 * long)
    assert len(completed(server, max_tokens=0, logprobs=2).choices[0].logprobs.tokens) == long
    assert len(completed(server, prompt=[ASKED["prompt"]] * 3, max_tokens=0, logprobs=0).choices) == 3
    for more in ({"logprobs": 3}, {"logprobs": 1, "prompt": [ASKED["prompt"]] * 2}):
        with pytest.raises(openai.BadRequestError, match="fewer prompts at once, shorter pieces") as refused:
            completed(server, max_tokens=0, **more)
        assert refused.value.param == "prompt"
    assert completed(server, max_tokens=0).choices[0].text == ASKED["prompt"]


def test_as_many_as_are_told_at_once_leave_room_for_the_answer(server: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Harnesses ask for a token."""
    long = completed(server, max_tokens=0).usage.prompt_tokens
    monkeypatch.setattr(allowance, "MOST", 4 * long)
    monkeypatch.setattr(allowance, "PLANNED_BYTES", 4 * long * PROMPT_BYTES)
    monkeypatch.setattr(server.service._allowance, "left", 4 * long * PROMPT_BYTES)
    for asked in ({"logprobs": 3}, {"logprobs": 1, "prompt": [ASKED["prompt"]] * 2}):
        for streamed in (False, True):
            assert list(completed(server, **asked, max_tokens=1, stream=streamed))
            until(lambda: server.service._allowance.left == 4 * long * PROMPT_BYTES)


def told_at_last(server: Hosted) -> Any:
    """A prompt's logprobs; the server may need a moment to see that the client before has gone."""
    for _ in range(200):
        try:
            return completed(server, max_tokens=0, logprobs=4)
        except openai.RateLimitError:
            time.sleep(0.05)
    raise AssertionError("the place was never given back")


def test_so_many_logprobs_of_prompts_are_told_at_a_time(server: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {str(token): -100 for token in server.service.language.tokenizer.end_tokens}
    long = completed(server, max_tokens=0).usage.prompt_tokens
    monkeypatch.setattr(server.service._allowance, "left", 5 * long * PROMPT_BYTES)
    stream = completed(server, stream=True, max_tokens=900, logprobs=1, logit_bias=ends)
    try:
        next(iter(stream))
        for streamed in (False, True):
            with pytest.raises(openai.RateLimitError, match="logprobs of other requests leave no room") as refused:
                completed(server, max_tokens=0, logprobs=3, stream=streamed)
            assert refused.value.response.headers["retry-after"] == "1"
        assert completed(server, max_tokens=0, logprobs=2).choices  # beside the other
        assert completed(server, max_tokens=0).choices
        assert completed(server, max_tokens=1, logprobs=1, echo=False).choices
    finally:
        stream.close()
    assert told_at_last(server).choices
    assert completed(server, max_tokens=0, logprobs=4).choices  # an end gives it back before it is told
    until(lambda: server.service._allowance.left == 5 * long * PROMPT_BYTES)


def test_the_place_is_given_back_by_who_finds_none_in_the_queue(
    server: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise BusyError("7 requests wait", 8.0)

    with monkeypatch.context() as patch:
        patch.setattr(server.service.scheduler, "submit", full)
        patch.setattr(server.service._allowance, "left", 2 * len(ASKED["prompt"]) * PROMPT_BYTES)
        for _ in range(9):
            with pytest.raises(openai.RateLimitError, match="7 requests wait"):
                completed(server, max_tokens=0, logprobs=1)
    assert completed(server, max_tokens=0, logprobs=1).choices


def encoded(shape: CompletionShape, said: Said) -> Iterator[bytes]:
    for event in shape.said(said):
        yield msgspec.json.encode(event.data)
    list(shape.ended(Ended("length", None, 0)))
    yield msgspec.json.encode(shape.document())


@pytest.mark.parametrize("alternatives", [0, 1, 5])
def test_what_is_planned_for_a_token_s_logprobs_is_enough(
    server: Hosted, alternatives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From logits to JSON, streamed and whole at once, of tokens of 40 characters."""
    vocabulary, tokenizer = server.service.engine.model.vocab_size, server.service.language.tokenizer
    generator = np.random.default_rng(1)
    tokens = [int(token) for token in generator.integers(0, vocabulary, 1000)]
    asked = CompletionRequest("demo", tokens, max_tokens=0, logprobs=alternatives, echo=True)
    asks = server.service.texts([tokens], wish(asked))
    logits = generator.normal(size=(100, vocabulary)).astype(np.float32)
    monkeypatch.setattr(Tokenizer, "decode", lambda self, tokens, **_: f"{tokens[0]:40}")
    tracemalloc.start()
    try:
        shape, scorer = CompletionShape("demo", asks, asked, tokenizer), Scorer(tokens, alternatives)
        for _ in range(10):
            scorer.read(logits)
        bodies = list(encoded(shape, Said((), None, 0, scorer.scored())))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(bodies) == 2
    assert peak < allowance.of_prompts(asks)


def test_a_server_plans_for_prompts_logprobs(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pack.open(demo) as pack:
        planned = service.server_bytes(pack)
        monkeypatch.setattr(allowance, "PLANNED_BYTES", 0)
        assert planned - service.server_bytes(pack) == allowance.MOST * PROMPT_BYTES
