"""Logprobs that are told at the end: so much memory is planned for them, and an answer that has more fails alone."""

import asyncio
import socket
import time
import tracemalloc
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import openai
import pytest
from server.hosting import Hosted, hosted, unread
from server.test_manners import until

from moepack.runtime.answers.events import CallArguments, CallBegan, CallEnded, Content, Event, Thinking
from moepack.runtime.server import allowance, chat, completions, likelihoods, responses
from moepack.runtime.server.delivery import Streamed, Whole, told
from moepack.runtime.server.settings import Limits
from moepack.runtime.server.shape import Shape
from moepack.runtime.serving.answer import Ended, Likelihood, Part, Said
from moepack.runtime.tokenizer import Tokenizer

TOKENS = 1000
HELLO = [{"role": "user", "content": "hello"}]
STREAMED = {"stream": True}
TEXTS = [" " * 64, "\t" * 16, "नमस्ते", "какой-то", "天气", "internationalization"]


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


def parts(server: Hosted, top: int, event: Event) -> list[Part]:
    """Tokens drawn at random, and the end."""
    generator, vocabulary = np.random.default_rng(1), server.service.engine.model.vocab_size
    drawn = generator.integers(0, vocabulary, (TOKENS, 1 + top)).tolist()
    said = [Said((event,), found(token, top)) for token, *top in drawn]
    return [*said, Ended("length", None, len(said))]


def found(token: int, top: list[int]) -> Likelihood:
    return Likelihood(token, -1 / (2 + token), tuple((each, -1 / (3 + each)) for each in top))


class Scripted:
    """A pending answer."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts, self._next = parts, 0

    @property
    def over(self) -> bool:
        return self._next == len(self._parts)

    async def get(self, kept: int) -> Part:
        self._next += 1
        return self._parts[self._next - 1]

    def cancel(self) -> None:
        pass


def peak(shape: Shape, parts: Sequence[Part], *, stream: bool) -> int:
    """Bytes at the most, from the parts to the last piece that is sent."""

    async def forever() -> MutableMapping[str, Any]:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def nowhere(message: MutableMapping[str, Any]) -> None:
        await asyncio.sleep(0)  # the loop forgets timeouts that are over

    async def deliver() -> int:
        tracemalloc.start()
        try:
            delivery: Any = Streamed if stream else Whole
            await delivery(Scripted(parts), shape, Limits())({}, forever, nowhere)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return asyncio.run(deliver())


@pytest.mark.parametrize("shaped", [chat_shape, completion_shape, response_shape])
@pytest.mark.parametrize("top", [0, 1, 5, 20])
@pytest.mark.parametrize("text", [None, *TEXTS])
def test_no_more_is_kept_than_is_said(
    server: Hosted, monkeypatch: pytest.MonkeyPatch, shaped: Any, top: int, text: str | None
) -> None:
    top = min(top, completions.MOST_LOGPROBS) if shaped is completion_shape else top
    if text is not None:  # tokens of such a text each
        monkeypatch.setattr(Tokenizer, "decode", lambda self, tokens, **_: f"{tokens[0]}{text}")
    for more in ({}, STREAMED):
        shape = shaped(server, top, **more)
        most = peak(shape, parts(server, top, Content("hello ")), stream=bool(more))
        assert most < (shape.kept or 300 * TOKENS)
        assert (shape.kept > 0) == (not more or shaped is response_shape)


def test_a_response_does_not_keep_what_it_does_not_tell(server: Hosted) -> None:
    *thoughts, end = parts(server, 5, Thinking("hm "))
    *inside, _ = parts(server, 5, CallArguments(0, "1"))
    silent = Said((), found(1, [2] * 5))
    shape = response_shape(server, 5, **STREAMED)
    list(told(shape, silent))
    assert (one := shape.kept)  # it may belong to a text that is held back
    for part in [*thoughts, Said((CallBegan(0, "get_weather"),)), *inside, silent, Said((CallEnded(0),)), end]:
        list(told(shape, part))
        assert shape.kept <= one
    assert shape.kept == 0


@pytest.fixture
def endless(server: Hosted) -> dict[str, Any]:
    """An answer of 100 tokens, with logprobs."""
    ends = {str(token): -100 for token in server.service.language.tokenizer.end_tokens}
    return {"model": "demo", "messages": HELLO, "logit_bias": ends, "max_tokens": 100, "logprobs": True}


def size(answer: Any) -> int:
    """What its logprobs take."""
    return likelihoods.size(msgspec.Raw(each.to_json(indent=None)) for each in answer.choices[0].logprobs.content)


def test_who_keeps_more_than_is_planned_fails_and_may_stream(
    server: Hosted, endless: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, client = server.service._allowance.left, server.openai()
    most = size(client.chat.completions.create(**{**endless, "max_tokens": 90}))
    monkeypatch.setattr(allowance, "PLANNED_BYTES", most)
    with pytest.raises(openai.BadRequestError, match="ask for fewer tokens or alternatives, or stream chats"):
        client.chat.completions.create(**endless)
    until(lambda: server.service._allowance.left == left)
    assert client.chat.completions.create(**{**endless, "max_tokens": 90}).choices
    chunks = list(client.chat.completions.create(**endless, stream=True))
    assert sum(len(chunk.choices[0].logprobs.content) for chunk in chunks if chunk.choices[0].logprobs) == 100
    assert client.chat.completions.create(**{**endless, "logprobs": False}).choices
    until(lambda: server.service._allowance.left == left)


def test_a_stream_that_keeps_them_ends_with_the_error(server: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    left = server.service._allowance.left
    asked: dict[str, Any] = {"model": "demo", "input": "hello", "max_output_tokens": 100, "temperature": 0}
    asked |= {"include": [responses.LOGPROBS], "stream": True}
    for patched, code in ((allowance, "invalid_prompt"), (server.service._allowance, "rate_limit_exceeded")):
        with monkeypatch.context() as patch:
            patch.setattr(patched, "PLANNED_BYTES" if patched is allowance else "left", 1000)
            events = list(server.openai().responses.create(**asked))
            assert events[-1].type == "response.failed"
            assert events[-1].response.error.code == code
            assert "logprobs" in events[-1].response.error.message
            until(lambda: server.service.scheduler.running == 0)
    assert server.service._allowance.left == left


def test_others_find_room_when_it_is_given_back(
    server: Hosted, endless: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = server.openai()
    one = size(client.chat.completions.create(**endless))
    monkeypatch.setattr(server.service._allowance, "left", one // 2)
    with pytest.raises(openai.RateLimitError, match="logprobs of other requests leave no room") as refused:
        client.chat.completions.create(**endless)
    assert refused.value.response.headers["retry-after"] == "1"
    monkeypatch.setattr(server.service._allowance, "left", one)
    for _ in range(2):
        assert client.chat.completions.create(**endless).choices
        until(lambda: server.service._allowance.left == one)
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(**endless, n=2)
    until(lambda: server.service._allowance.left == one)


@pytest.mark.parametrize("read", [False, True])
def test_what_is_not_read_is_held_until_it_is_given_up(demo: Path, endless: dict[str, Any], read: bool) -> None:
    patience = 30.0 if read else 1.0
    with hosted(demo, send_buffer=4096, limits=Limits(send_seconds=patience)) as server:
        whole = {**endless, "max_tokens": 300, "top_logprobs": 20}
        said = {"input": "hello", "max_output_tokens": 300, "top_logprobs": 20}
        said |= {"include": [responses.LOGPROBS], "stream": True}
        for path, body in (("/v1/chat/completions", whole), ("/v1/responses", said)):
            before, failed = server.service.scheduler.counts.finished, server.service.scheduler.counts.failed
            with unread(server, path, body) as client:
                if path == "/v1/chat/completions":
                    until(lambda before=before: server.service.scheduler.counts.finished == before + 1)
                until(lambda: server.service.logprob_bytes > 10_000)
                while read and server.service.logprob_bytes:
                    client.recv(65536)
                until(lambda: server.service.logprob_bytes == 0)
            assert server.service.scheduler.counts.failed == failed


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_an_earlier_answer_unread_holds_nothing_for_long(demo: Path, stream: bool) -> None:
    """The next answer's head waits for it, too."""
    with hosted(demo, send_buffer=4096, limits=Limits(send_seconds=0.5)) as server:
        asked = {"prompt": "a " * 300, "echo": True, "logprobs": 5, "max_tokens": 1, "stream": stream}
        with unread(server, "/tokenize", {"content": "a " * 8000, "with_pieces": True}, asked):
            until(lambda: server.service.logprob_bytes > 0)
            until(lambda: server.service.logprob_bytes == 0)


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="this system has no such option")
def test_a_slow_client_gets_all_of_it(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megabytes wait in the kernel otherwise, of which a third is not taken in the time of a piece."""
    monkeypatch.setattr(chat.ChatShape, "document", lambda self: "x" * 6_000_000)
    with (
        hosted(demo, limits=Limits(send_seconds=2.0)) as server,
        unread(server, "/v1/chat/completions", {"messages": HELLO, "max_tokens": 1}, window=None) as client,
    ):
        begin, got = time.monotonic(), 0
        while more := client.recv(20_000):
            got += len(more)
            if (passed := time.monotonic() - begin) < 4:  # twice the time that a piece has
                time.sleep(max(0.0, got / 400_000 - passed))
            if got > 6_000_000:
                break
        assert got > 6_000_000
