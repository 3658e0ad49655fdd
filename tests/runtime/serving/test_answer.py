"""What is told of an answer, and when it ends."""

import numpy as np
import pytest
from front import byte_level

from moepack.runtime.answers.events import CallArguments, CallEnded, Content, Event
from moepack.runtime.answers.reader import AnswerReader
from moepack.runtime.generate import Limits, Steps
from moepack.runtime.sampling import Sampler, Sampling
from moepack.runtime.serving.answer import Answer, Began, Ended, Failed, Likelihood, Part, Said
from moepack.runtime.tokenizer import Tokenizer

CALL = '<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>'
VOCABULARY = byte_level()
SIZE = VOCABULARY.get_vocab_size()
END = VOCABULARY.token_to_id("<|end|>")


def told(text: str, limits: Limits | None = None, *, top: int | None = None, one_call: bool = False) -> list[Part]:
    """The parts of an answer whose likeliest tokens spell `text` and then its end."""
    tokenizer, parts = Tokenizer(VOCABULARY, SIZE, [END], {}), list[Part]()
    limits = limits or Limits(1000, 2000, frozenset({END}))
    steps = Steps(Sampler(Sampling()), tokenizer.stream(), limits, limits.max_tokens)
    answer = Answer(steps, AnswerReader("json", "never"), parts.append, top_logprobs=top, one_call=one_call)
    answer.begin(3)
    for token in [*tokenizer.encode(text, add_special_tokens=False), END]:
        if answer.next(np.eye(SIZE, dtype=np.float32)[token] * 9) is None:
            return parts
    raise AssertionError("it did not end")


def events(parts: list[Part]) -> list[Event]:
    return [event for part in parts if isinstance(part, Said) for event in part.events]


def test_an_answer_begins_is_said_and_ends() -> None:
    first, *said, last = told("Hi")
    assert (first, last) == (Began(3), Ended("stop", None, 2))
    assert events(said) == [Content("H"), Content("i")]


def test_a_limit_and_a_stop_string_end_it() -> None:
    assert told("Hello", Limits(3, 99, frozenset({END})))[-1] == Ended("length", None, 3)
    stopped = told("Hello", Limits(9, 99, frozenset({END}), ("lo",)))
    assert stopped[-1] == Ended("stop", "lo", 5)
    assert "".join(event.text for event in events(stopped) if isinstance(event, Content)) == "Hel"


@pytest.mark.parametrize(("one_call", "calls"), [(False, 2), (True, 1)])
def test_the_first_call_ends_it_where_one_is_wanted(one_call: bool, calls: int) -> None:
    parts = told(f"{CALL}\n{CALL} and so on", one_call=one_call)
    assert isinstance(parts[-1], Ended)
    assert sum(isinstance(event, CallEnded) for event in events(parts)) == calls
    assert "".join(event.text for event in events(parts) if isinstance(event, CallArguments)) == "{}" * calls


def test_every_token_has_its_likelihood() -> None:
    said = [part for part in told(CALL, top=2) if isinstance(part, Said) and part.likelihood is not None]
    assert len(said) == len(CALL)
    for part in said:
        assert part.likelihood is not None
        assert part.likelihood.top[0] == (part.likelihood.token, part.likelihood.logprob)
        assert part.likelihood.logprob == pytest.approx(-np.log1p((SIZE - 1) * np.exp(-9)))


def test_a_failure_is_the_last_word() -> None:
    parts: list[Part] = []
    tokenizer = Tokenizer(VOCABULARY, SIZE, [END], {})
    steps = Steps(Sampler(Sampling()), tokenizer.stream(), Limits(5, 9), 5)
    Answer(steps, AnswerReader(None, "never"), parts.append).fail(ValueError("x"))
    assert isinstance(parts[0], Failed)


@pytest.mark.parametrize("count", [0, 1, 3, 40, 99])
def test_the_likeliest_are_those_of_a_whole_sort(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(20):
        logits = rng.integers(-4, 5, 40).astype(np.float32)  # with many ties
        found = Likelihood.of(logits, 7, count)
        assert [token for token, _ in found.top] == np.argsort(-logits, kind="stable")[:count].tolist()
        assert found.logprob == pytest.approx(logits[7] - np.log(np.exp(logits.astype(np.float64)).sum()))
