"""Several prompts in one request for completions, by the official client, as evaluation harnesses send them."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from server.hosting import Hosted, hosted
from server.test_choices import fail_answer, held, told
from server.test_echo import rows
from server.test_manners import PATIENCE, until

TEXTS = ["def main():", "import numpy as", "Once upon a time, naïve"]
WARM: dict[str, Any] = {"temperature": 1.5, "max_tokens": 12, "logprobs": 2, "seed": 11}


def asked(server: Hosted, prompt: Any, **more: Any) -> Any:
    return server.openai().completions.create(model="demo", prompt=prompt, **{**WARM, **more})


def encoded(server: Hosted, texts: Sequence[str]) -> list[list[int]]:
    tokenizer = server.service.language.tokenizer
    return [tokenizer.encode(text, add_special_tokens=True) for text in texts]


@pytest.mark.parametrize("as_tokens", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_each_prompt_has_the_choices_that_it_has_alone(server: Hosted, n: int, as_tokens: bool) -> None:
    prompts: list[Any] = encoded(server, TEXTS) if as_tokens else list(TEXTS)
    together = asked(server, prompts, n=n)
    alone = [asked(server, prompt, n=n) for prompt in prompts]
    assert [choice.index for choice in together.choices] == list(range(3 * n))
    assert [told(choice) for choice in together.choices] == [told(each) for one in alone for each in one.choices]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(together.usage, name) == sum(getattr(one.usage, name) for one in alone)


@pytest.mark.parametrize("more", [{}, {"echo": True, "logprobs": None, "n": 2}, {"echo": True}, {"stop": ["\n"]}])
def test_the_stream_s_chunks_make_the_choices(server: Hosted, more: dict[str, Any]) -> None:
    whole = asked(server, TEXTS, **more)
    chunks = list(asked(server, TEXTS, **more, stream=True, stream_options={"include_usage": True}))
    for name in ("prompt_tokens", "completion_tokens"):
        assert getattr(chunks[-1].usage, name) == getattr(whole.usage, name)
    order = [choice.index for chunk in chunks for choice in chunk.choices]
    assert order != sorted(order), "the prompts came one after the other"
    assert {choice.index for choice in whole.choices} == set(order) == set(range(3 * more.get("n", 1)))
    for choice in whole.choices:
        own = [each for chunk in chunks for each in chunk.choices if each.index == choice.index]
        assert "".join(each.text for each in own) == choice.text
        assert own[-1].finish_reason == choice.finish_reason
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset") if choice.logprobs else ():
            columns = [value for each in own if each.logprobs for value in getattr(each.logprobs, name)]
            assert columns == getattr(choice.logprobs, name)


@pytest.mark.parametrize("as_tokens", [False, True])
@pytest.mark.parametrize("longest", [0, 1])
def test_the_logprobs_of_each_prompt_are_the_model_s(server: Hosted, longest: int, as_tokens: bool) -> None:
    """Read side by side, in the order of their numbers, whatever is remembered of them."""
    tokens, texts = encoded(server, [TEXTS[0], *TEXTS]), [TEXTS[0], *TEXTS]
    answer = asked(server, tokens if as_tokens else texts, echo=True, max_tokens=longest, logprobs=1, temperature=0)
    assert answer.usage.prompt_tokens == sum(map(len, tokens))
    for choice, text, own in zip(answer.choices, texts, tokens, strict=True):
        assert choice.text.startswith(text)
        found = choice.logprobs.token_logprobs
        assert len(found) == len(own) + longest
        wanted = [row[token] for row, token in zip(rows(server, own), own[1:], strict=False)]
        np.testing.assert_allclose(found[1 : len(own)], wanted, rtol=0, atol=1e-12)


def test_what_prompts_share_is_computed_once(demo: Path) -> None:
    with hosted(demo, parallel=3, prefix_bytes=0) as server:
        [own] = encoded(server, TEXTS[:1])
        answer = asked(server, [TEXTS[0]] * 3)
        counts = server.service.scheduler.counts
        assert (counts.prompt_tokens, counts.cached_tokens) == (len(own), 2 * len(own))
        assert answer.usage.prompt_tokens == 3 * len(own)
        assert answer.usage.prompt_tokens_details.cached_tokens == 2 * len(own)
        assert len({str(told(choice)) for choice in answer.choices}) == 1  # the seeds are those of each prompt alone


@pytest.mark.parametrize("prompt", [["a", 1], [1, [1]], ["a", ""], [[5], []], [[5], [10**6]], [[5], [-1]], [[], []]])
def test_prompts_that_cannot_all_be_computed_are_refused(server: Hosted, prompt: Any) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError):
            asked(server, prompt, stream=stream)


@pytest.mark.parametrize("long", [" long" * 40_000, "long " * 3_000])  # found before it is encoded whole, or after
def test_which_of_several_prompts_is_too_long_is_said(server: Hosted, long: str) -> None:
    with pytest.raises(openai.BadRequestError, match=r"prompt\[1\]: prompt is too long") as refused:
        asked(server, ["short", long])
    assert refused.value.code == "context_length_exceeded"


def test_prompts_that_do_not_all_fit_the_queue_are_refused_together(demo: Path) -> None:
    with hosted(demo, parallel=1, queue=4) as server:
        scheduler = server.service.scheduler
        for n, prompts in ((1, ["a"] * 4), (2, ["a"] * 2)):
            with pytest.raises(openai.BadRequestError, match="room for 3 of one client only") as refused:
                asked(server, prompts, n=n)
            assert refused.value.param == "prompt"
        with held(server):
            client = threading.Thread(target=lambda: asked(server, TEXTS, max_tokens=2), daemon=True)
            client.start()
            until(lambda: (scheduler.running, scheduler.waiting) == (1, 2))
            with pytest.raises(openai.RateLimitError):
                asked(server, TEXTS[:2])
            assert scheduler.waiting == 2
        client.join(PATIENCE)
        until(lambda: scheduler.counts.finished == 3)


def test_a_failure_of_one_prompt_is_one_of_the_request(server: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_answer(monkeypatch, 2)
    with pytest.raises(openai.InternalServerError):
        asked(server, TEXTS)
    with pytest.raises(openai.APIError):
        list(asked(server, TEXTS, stream=True))
    until(lambda: server.service.scheduler.running == server.service.scheduler.waiting == 0)
