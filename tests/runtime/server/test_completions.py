"""/v1/completions, /v1/models, /tokenize, /health and /metrics."""

from itertools import accumulate
from typing import Any

import httpx2 as httpx
import openai
import pytest
from server.hosting import KEY, QUESTION, WEATHER, Hosted, function

HEADERS = {"authorization": f"Bearer {KEY}"}
ASKED: dict[str, Any] = {"model": "demo", "prompt": "def main():", "temperature": 0, "max_tokens": 24}


@pytest.mark.parametrize("more", [{}, {"logprobs": 3}, {"stop": ["\n"]}, {"temperature": 1.3, "seed": 4}])
def test_the_stream_makes_the_whole_text(server: Hosted, more: dict[str, Any]) -> None:
    client = server.openai()
    whole = client.completions.create(**{**ASKED, **more})
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.completions.create(**{**ASKED, **more}, **options))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.text for choice in choices) == whole.choices[0].text
    assert choices[-1].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    columns = [choice.logprobs for choice in choices if choice.logprobs]
    if "logprobs" in more:
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [each for column in columns for each in getattr(column, name)]
            assert joined == getattr(whole.choices[0].logprobs, name)
        told = whole.choices[0].logprobs
        assert len(told.tokens) == 24
        assert told.text_offset == list(accumulate(map(len, told.tokens[:-1]), initial=0))
    else:
        assert columns == []


def test_tokens_are_a_prompt_too(server: Hosted) -> None:
    client = server.openai()
    text = client.completions.create(**ASKED).choices[0].text
    said = httpx.post(f"{server.url}/tokenize", json={"content": ASKED["prompt"], "with_pieces": True}, headers=HEADERS)
    tokens = said.json()
    assert "".join(tokens["pieces"]) == ASKED["prompt"]
    assert tokens["count"] == len(tokens["tokens"])
    assert client.completions.create(**{**ASKED, "prompt": tokens["tokens"]}).choices[0].text == text
    assert client.completions.create(**{**ASKED, "prompt": [ASKED["prompt"]]}).choices[0].text == text


def test_a_chat_is_as_many_tokens_as_tokenize_says(server: Hosted) -> None:
    chat = {"messages": [{"role": "user", "content": QUESTION}], "tools": [function(WEATHER)]}
    answer = server.openai().chat.completions.create(model="demo", max_tokens=1, **chat)
    said = httpx.post(f"{server.url}/tokenize", json=chat, headers=HEADERS).json()
    assert said["count"] == answer.usage.prompt_tokens


@pytest.mark.parametrize(
    ("param", "more"),
    [
        ("prompt", {"prompt": ["a", 1]}),
        ("suffix", {"suffix": "x"}),
        ("best_of", {"best_of": 2, "stream": True}),
        ("max_tokens", {"max_tokens": -1, "extra_body": {"echo": True}}),
        ("logprobs", {"logprobs": 6}),
        ("whatever", {"extra_body": {"whatever": None}}),
    ],
)
def test_what_is_not_supported_is_named(server: Hosted, param: str, more: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.openai().completions.create(**{**ASKED, **more})
    assert refused.value.param == param


@pytest.mark.parametrize("prompt", ["", [], [10**6], [-1]])
def test_a_prompt_that_cannot_be_computed_is_refused(server: Hosted, prompt: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        server.openai().completions.create(**{**ASKED, "prompt": prompt})


def test_the_model_is_listed(server: Hosted) -> None:
    client = server.openai()
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "moepack"
    listed = server.anthropic().models.list()
    assert (listed.has_more, listed.first_id, [model.display_name for model in listed]) == (False, "demo", ["demo"])
    found = server.anthropic().models.retrieve("demo")
    assert (found.type, int(found.created_at.timestamp())) == ("model", client.models.retrieve("demo").created)
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt/x' here"):
        client.models.retrieve("gpt/x")


def test_health_needs_no_key_and_metrics_count(server: Hosted) -> None:
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/metrics").status_code == 401

    def metrics() -> dict[str, float]:
        text = httpx.get(f"{server.url}/metrics", headers=HEADERS).text
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}

    before = metrics()
    server.openai().completions.create(**ASKED)
    after, counted = metrics(), 'moepack_responses_total{path="/v1/completions",status="200"}'
    assert after[counted] == before.get(counted, 0) + 1
    assert after["moepack_finished_total"] == before["moepack_finished_total"] + 1
    assert after["moepack_answer_tokens_total"] > before["moepack_answer_tokens_total"]
