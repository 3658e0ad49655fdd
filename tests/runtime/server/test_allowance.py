"""Logprobs that are told at the end: so much memory is planned for them, and an answer that has more fails alone."""

import tracemalloc
from typing import Any

import msgspec
import numpy as np
import openai
import pytest
from server.hosting import Hosted
from server.test_manners import until

from moepack.runtime.answers.events import Content
from moepack.runtime.server import allowance, chat, completions, responses
from moepack.runtime.server.eventstream import told
from moepack.runtime.server.shape import Shape
from moepack.runtime.serving.answer import Ended, Likelihood, Said

TOKENS = 1000
HELLO = [{"role": "user", "content": "hello"}]
STREAMED = {"stream": True}


def chat_shape(server: Hosted, top: int, **more: Any) -> Shape:
    asked = chat.ChatRequest("demo", HELLO, logprobs=True, top_logprobs=top, **more)
    ask = server.service.chat(chat.wish(asked))
    return chat.ChatShape("demo", ask, asked, server.service.language.tokenizer)


def completion_shape(server: Hosted, top: int, **more: Any) -> Shape:
    asked = completions.CompletionRequest("demo", "hello", logprobs=top, **more)
    asks = server.service.texts(["hello"], completions.wish(asked))
    return completions.CompletionShape("demo", asks, asked, server.service.language.tokenizer)


def response_shape(server: Hosted, top: int, **more: Any) -> Shape:
    asked = responses.ResponseRequest("demo", "hello", top_logprobs=top, include=[responses.LOGPROBS], **more)
    ask = server.service.chat(responses.wish(asked))
    return responses.ResponseShape("demo", ask, asked, server.service.language.tokenizer)


def parts(server: Hosted, top: int) -> list[Said]:
    """Tokens drawn at random."""
    generator, vocabulary = np.random.default_rng(1), server.service.engine.model.vocab_size
    drawn = generator.integers(0, vocabulary, (TOKENS, 1 + top)).tolist()
    return [Said((Content("hello "),), found(token, top)) for token, *top in drawn]


def found(token: int, top: list[int]) -> Likelihood:
    return Likelihood(token, -1 / (2 + token), tuple((each, -1 / (3 + each)) for each in top))


def peak(shape: Shape, said: list[Said]) -> int:
    """Bytes at the most, from the parts to the last event and the document, one after the other."""
    tracemalloc.start()
    try:
        for part in [*said, Ended("length", None, len(said))]:
            for event in told(shape, part):
                msgspec.json.encode(event.data)
        if shape.kept:
            msgspec.json.encode(shape.document())
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shaped", [chat_shape, completion_shape, response_shape])
@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_what_a_token_takes_is_enough(server: Hosted, shaped: Any, top: int) -> None:
    if (top, shaped) == (20, completion_shape):
        top = completions.MOST_LOGPROBS
    for more in ({}, STREAMED):
        shape, said = shaped(server, top, **more), parts(server, top)
        most = sum(map(allowance.of_part, said)) if shape.kept else 300 * TOKENS
        assert peak(shape, said) < most
    assert shape.kept == (shaped is response_shape)  # streamed


@pytest.fixture
def endless(server: Hosted) -> dict[str, Any]:
    """An answer of 100 tokens, with logprobs."""
    ends = {str(token): -100 for token in server.service.language.tokenizer.end_tokens}
    return {"model": "demo", "messages": HELLO, "logit_bias": ends, "max_tokens": 100, "logprobs": True}


def test_who_keeps_more_than_is_planned_fails_and_may_stream(
    server: Hosted, endless: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = server.service._allowance.left
    monkeypatch.setattr(allowance, "PLANNED_BYTES", 99 * allowance.TOKEN_BYTES)
    client = server.openai()
    with pytest.raises(openai.BadRequestError, match="stream chats or completions, or ask for fewer tokens") as refused:
        client.chat.completions.create(**endless)
    assert refused.value.param == "logprobs"
    until(lambda: server.service._allowance.left == left)
    assert len(client.chat.completions.create(**{**endless, "max_tokens": 99}).choices[0].logprobs.content) == 99  # type: ignore[union-attr]
    chunks = list(client.chat.completions.create(**endless, stream=True))
    assert sum(len(chunk.choices[0].logprobs.content) for chunk in chunks if chunk.choices[0].logprobs) == 100
    assert client.chat.completions.create(**{**endless, "logprobs": False}).choices
    assert server.service._allowance.left == left


def test_a_stream_that_keeps_them_ends_with_the_error(
    server: Hosted, endless: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = server.service._allowance.left
    monkeypatch.setattr(allowance, "PLANNED_BYTES", 9 * allowance.TOKEN_BYTES)
    asked: dict[str, Any] = {"model": "demo", "input": "hello", "max_output_tokens": 100, "temperature": 0}
    events = list(server.openai().responses.create(**asked, include=[responses.LOGPROBS], stream=True))  # type: ignore[list-item]
    assert events[-1].type == "response.failed"
    assert "kept for the end of an answer" in events[-1].response.error.message  # type: ignore[union-attr]
    until(lambda: server.service._allowance.left == left)


def test_others_find_room_when_it_is_given_back(
    server: Hosted, endless: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, client = allowance.TOKEN_BYTES * 100, server.openai()
    monkeypatch.setattr(server.service._allowance, "left", one - 1)
    with pytest.raises(openai.RateLimitError, match="logprobs of other requests leave no room") as refused:
        client.chat.completions.create(**endless)
    assert refused.value.response.headers["retry-after"] == "1"
    monkeypatch.setattr(server.service._allowance, "left", one)
    for _ in range(2):
        assert client.chat.completions.create(**endless).choices
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(**endless, n=2)
    assert client.chat.completions.create(**endless).choices
