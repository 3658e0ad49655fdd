"""Penalties and biases of both of OpenAI's endpoints for texts and chats, by the official client."""

from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import pytest
from server.hosting import KEY, QUESTION, Hosted

from moepack.runtime.server.wishes import ChatWish, Wish

HEADERS = {"authorization": f"Bearer {KEY}"}
CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
TEXT: dict[str, Any] = {"model": "demo", "prompt": "def main():", "temperature": 0}
MORE: dict[str, Any] = {"presence_penalty": 2, "frequency_penalty": 2, "extra_body": {"repetition_penalty": 9}}


def completed(server: Hosted, kind: str, **more: Any) -> Any:
    client = server.openai()
    if kind == "chat":
        return client.chat.completions.create(**{**CHAT, "max_tokens": 16, "logprobs": True, **more})
    return client.completions.create(**{**TEXT, "max_tokens": 16, "logprobs": 1, **more})


def tokens(answer: Any) -> list[str]:
    found = answer.choices[0].logprobs
    return [each.token for each in found.content] if hasattr(found, "content") else found.tokens


def number_of(server: Hosted, token: str) -> int:
    [found] = httpx.post(f"{server.url}/tokenize", json={"content": token}, headers=HEADERS).json()["tokens"]
    return int(found)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_bias_forces_a_token_and_another_forbids_it(server: Hosted, kind: str) -> None:
    token = number_of(server, "x")
    forced = tokens(completed(server, kind, logit_bias={str(token): 100}))
    assert forced == ["x"] * 16
    forbidden = number_of(server, tokens(completed(server, kind, max_tokens=1))[0])
    assert number_of(server, tokens(completed(server, kind, logit_bias={str(forbidden): -100}))[0]) != forbidden


def prompt(server: Hosted, kind: str) -> list[int]:
    if kind == "text":
        return list(server.service.texts([TEXT["prompt"]], Wish())[0].tokens)
    return list(server.service.chat(ChatWish(CHAT["messages"], Wish())).tokens)


def greedy(server: Hosted, tokens: list[int], count: int, given: dict[str, Any]) -> list[int]:
    """The likeliest tokens by the definitions of OpenAI and transformers, one token after the other."""
    session, said = server.session(), list[int]()
    logits = session.extend(tokens).astype(np.float64)
    while True:
        for token in {*tokens, *said}:
            factor = given.get("repetition_penalty", 1)
            logits[token] = logits[token] * factor if logits[token] < 0 else logits[token] / factor
        for token in set(said):
            logits[token] -= said.count(token) * given.get("frequency_penalty", 0) + given.get("presence_penalty", 0)
        for token, bias in given.get("logit_bias", {}).items():
            logits[int(token)] += bias
        said.append(int(logits.argmax()))
        if len(said) == count:
            return said
        logits = session.extend(said[-1:]).astype(np.float64)


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize(
    "given",
    [
        {"presence_penalty": 2},
        {"frequency_penalty": 1.5},
        {"repetition_penalty": 1.8},
        {"frequency_penalty": -2, "presence_penalty": -0.5, "logit_bias": {"90": 3, "100": 3.5, "200": -20}},
        {"frequency_penalty": 0.7, "repetition_penalty": 1.2, "logit_bias": {"90": 6}},
    ],
)
def test_every_token_is_the_likeliest_one_that_is_left(server: Hosted, kind: str, given: dict[str, Any]) -> None:
    free = greedy(server, prompt(server, kind), 24, {})
    wanted = greedy(server, prompt(server, kind), 24, given)
    assert kind == "chat" or wanted != free, "the case shows nothing"
    tokenizer = server.service.language.tokenizer
    cut = next((index for index, token in enumerate(wanted) if token in tokenizer.end_tokens), len(wanted))
    said = tokens(completed(server, kind, max_tokens=24, extra_body=given))
    assert said == [tokenizer.decode([token], special=True) for token in wanted[:cut]]


def test_logprobs_stay_the_model_s(server: Hosted) -> None:
    """A token that is forced has the likelihood that the model gave it."""
    token = str(number_of(server, "x"))
    top = completed(server, "chat", max_tokens=1, top_logprobs=20).choices[0].logprobs.content[0]
    biased = completed(server, "chat", max_tokens=1, top_logprobs=20, logit_bias={token: 100}, **MORE)
    entry = biased.choices[0].logprobs.content[0]
    assert (entry.token, entry.top_logprobs) == ("x", top.top_logprobs)
    assert entry.logprob < top.logprob


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", 101),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"one": 1}),
        ("logit_bias", {"01": 1}),
        ("logit_bias", {"99999999": 1}),
        ("logit_bias", {"99999999999999999999": 1}),
    ],
)
def test_what_is_out_of_range_is_named(server: Hosted, kind: str, param: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        completed(server, kind, extra_body={param: value})
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


def test_a_biased_token_breaks_no_schema(server: Hosted) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    bias = {str(number_of(server, "x")): 100}
    answer = server.openai().chat.completions.create(**CHAT, logit_bias=bias, response_format=form, max_tokens=60)
    assert answer.choices[0].message.content.replace(" ", "") in ('{"ok":true}', '{"ok":false}')
