"""Several answers to one prompt, by the official client: each its own, together one request."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import openai
import pytest
from server.hosting import QUESTION, WEATHER, Hosted, function, hosted
from server.test_chat import assembled
from server.test_manners import PATIENCE, until

from moepack.runtime.serving.answer import Answer

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}]}
TEXT: dict[str, Any] = {"model": "demo", "prompt": "def main():"}
WARM: dict[str, Any] = {"temperature": 1.5, "max_tokens": 24}
LOGPROBS: dict[str, dict[str, Any]] = {"chat": {"logprobs": True, "top_logprobs": 2}, "text": {"logprobs": 2}}


def asked(server: Hosted, kind: str, **more: Any) -> Any:
    client = server.openai()
    if kind == "chat":
        return client.chat.completions.create(**{**CHAT, **WARM, **LOGPROBS["chat"], **more})
    return client.completions.create(**{**TEXT, **WARM, **LOGPROBS["text"], **more})


def told(choice: Any) -> dict[str, Any]:
    """All of a choice but its number."""
    return {name: value for name, value in choice.model_dump().items() if name != "index"}


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_each_choice_is_what_the_seed_after_gives(server: Hosted, kind: str) -> None:
    """Five of them, of which two run at once: the others come when there is room."""
    together = asked(server, kind, n=5, seed=11)
    alone = [asked(server, kind, seed=11 + index) for index in range(5)]
    assert [choice.index for choice in together.choices] == list(range(5))
    assert [told(choice) for choice in together.choices] == [told(answer.choices[0]) for answer in alone]
    assert len({str(told(choice)) for choice in together.choices}) == 5
    assert together.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert together.usage.completion_tokens == sum(answer.usage.completion_tokens for answer in alone)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_the_stream_s_chunks_make_the_choices(server: Hosted, kind: str) -> None:
    whole = asked(server, kind, n=3, seed=5)
    chunks = list(asked(server, kind, n=3, seed=5, stream=True, stream_options={"include_usage": True}))
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    order = [choice.index for chunk in chunks for choice in chunk.choices]
    assert order != sorted(order), "the answers came one after the other"
    for index, choice in enumerate(whole.choices):
        own = [each for chunk in chunks for each in chunk.choices if each.index == index]
        assert own[-1].finish_reason == choice.finish_reason
        if kind == "text":
            assert "".join(each.text for each in own) == choice.text
            offsets = [offset for each in own if each.logprobs for offset in each.logprobs.text_offset]
            assert offsets == choice.logprobs.text_offset
            continue
        message, finish, logprobs = assembled([SimpleNamespace(choices=[each]) for each in own])
        assert message == choice.message.model_dump(exclude_unset=True)
        assert (finish, logprobs) == (choice.finish_reason, choice.logprobs.content)


def test_every_choice_keeps_to_its_schema_and_calls_count_for_each(server: Hosted) -> None:
    tools = [function(WEATHER, strict=True)]
    answer = server.openai().chat.completions.create(
        **CHAT, n=4, temperature=1.5, seed=2, max_tokens=200, tools=tools, tool_choice="required"
    )
    whole = [choice for choice in answer.choices if choice.finish_reason == "tool_calls"]
    assert whole
    for choice in whole:
        assert choice.message.tool_calls[0].id == "call_00000000"
        for call in choice.message.tool_calls:
            jsonschema.validate(json.loads(call.function.arguments), WEATHER["parameters"])
    assert len({choice.message.tool_calls[0].function.arguments for choice in whole}) > 1


def test_the_prompt_is_computed_once(demo: Path) -> None:
    with hosted(demo, parallel=3, prefix_bytes=0) as server:
        answer = asked(server, "text", n=3, prompt="def main(): " * 20)
        counts = server.service.scheduler.counts
        assert counts.prompt_tokens == answer.usage.prompt_tokens
        assert counts.cached_tokens == 2 * answer.usage.prompt_tokens
        assert answer.usage.prompt_tokens_details.cached_tokens == 0


@contextmanager
def held(server: Hosted) -> Iterator[None]:
    """No step is computed inside."""
    gate, batch = threading.Event(), server.service.scheduler._batch
    step = batch.step
    batch.step = lambda: gate.wait(PATIENCE) and step()  # type: ignore[method-assign]
    try:
        yield
    finally:
        gate.set()


def test_choices_that_do_not_all_fit_the_queue_are_refused_together(demo: Path) -> None:
    with hosted(demo, parallel=1, queue=4) as server:
        scheduler = server.service.scheduler
        with pytest.raises(openai.BadRequestError, match="room for 3 of one client only") as refused:
            asked(server, "text", n=4)
        assert refused.value.param == "n"
        with held(server):
            client = threading.Thread(target=lambda: asked(server, "text", n=3, max_tokens=2), daemon=True)
            client.start()
            until(lambda: (scheduler.running, scheduler.waiting) == (1, 2))
            with pytest.raises(openai.RateLimitError):
                asked(server, "text", n=2)
            assert scheduler.waiting == 2
        client.join(PATIENCE)
        until(lambda: scheduler.counts.finished == 3)


def test_who_goes_away_ends_all_choices(demo: Path) -> None:
    with hosted(demo) as server:
        scheduler = server.service.scheduler
        stream = asked(server, "text", n=4, max_tokens=900, stream=True, temperature=2)
        next(iter(stream))
        stream.close()
        until(lambda: scheduler.running == scheduler.waiting == 0)
        assert scheduler.counts.cancelled + scheduler.counts.finished == 4
        assert scheduler.counts.cancelled > 0


def fail_answer(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    """From now on the answer of this number fails at its first token, of any request."""

    def failing(self: Answer, *given: Any) -> Any:
        if self._index == index:
            raise OSError(f"no answer {index}")
        return original(self, *given)

    original = Answer.next
    monkeypatch.setattr(Answer, "next", failing)


def test_a_failure_of_one_choice_is_one_of_the_request(server: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_answer(monkeypatch, 1)
    with pytest.raises(openai.InternalServerError):
        asked(server, "text", n=3)
    with pytest.raises(openai.APIError):
        list(asked(server, "text", n=3, stream=True))
    until(lambda: server.service.scheduler.running == server.service.scheduler.waiting == 0)


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize("n", [0, 9, -1])
def test_so_many_choices_are_refused(server: Hosted, kind: str, n: int) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        asked(server, kind, n=n)
    assert refused.value.param == "n"
