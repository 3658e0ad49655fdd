"""The generation loop on a session that answers what the test wrote: text, stops, limits, counts."""

from collections.abc import Sequence

import numpy as np
import pytest
from front import byte_level
from hypothesis import given
from hypothesis import strategies as st

from moepack.manifests.errors import CorruptInputError, UsageError
from moepack.runtime.generate import Generation, Limits, Piece, Result
from moepack.runtime.sampling import Logits, Sampler, Sampling
from moepack.runtime.stops import StopStrings
from moepack.runtime.tokenizer import Tokenizer

TOKENIZER = Tokenizer(byte_level("<tool_call>"), 258, {256}, {})
END = 256


class Scripted:
    """A session that says `script` token by token, then the end token; it records what it was fed."""

    def __init__(self, script: Sequence[int], fail_at: int | None = None) -> None:
        self.script, self.fail_at = [*script, END], fail_at
        self.fed: list[list[int]] = []
        self.position = 0

    def extend(self, tokens: Sequence[int]) -> Logits:
        if len(self.fed) == self.fail_at:
            raise KeyboardInterrupt
        self.fed.append(list(tokens))
        self.position += len(tokens)
        logits = np.zeros(258, np.float32)
        logits[self.script[len(self.fed) - 1]] = 1
        return logits


def encoded(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def generation(session: Scripted, prompt: str = "ask", stops: tuple[str, ...] = (), tokens: int = 1000) -> Generation:
    limits = Limits(tokens, 1000, TOKENIZER.end_tokens, stops)
    return Generation(session, encoded(prompt), Sampler(Sampling()), TOKENIZER.stream(), limits)


def answered(text: str, **options: object) -> tuple[list[Piece], Result]:
    answer = generation(Scripted(encoded(text)), **options)  # type: ignore[arg-type]
    return list(answer), answer.result()


def test_an_answer_ends_at_the_end_token_which_is_not_part_of_it() -> None:
    pieces, result = answered("hi 🙂")
    assert "".join(piece.text for piece in pieces) == result.text == "hi 🙂"
    assert list(result.tokens) == encoded("hi 🙂")
    assert (result.finish, result.stop, result.prompt_tokens) == ("stop", None, 3)


def test_the_session_gets_the_prompt_once_and_then_each_token_but_the_last() -> None:
    session = Scripted(encoded("abc"))
    list(generation(session))
    assert session.fed == [encoded("ask"), *([token] for token in encoded("abc"))]


def test_every_token_comes_with_a_piece_even_when_its_text_must_wait() -> None:
    pieces, result = answered("🙂")
    assert [piece.token for piece in pieces] == list(result.tokens)
    assert [piece.text for piece in pieces] == ["", "", "", "🙂"]


@pytest.mark.parametrize(("limit", "text"), [(1, "a"), (2, "ab"), (3, "abc")])
def test_the_token_limit_ends_an_answer_without_computing_one_more(limit: int, text: str) -> None:
    session = Scripted(encoded("abcdef"))
    answer = generation(session, tokens=limit)
    assert "".join(piece.text for piece in answer) == text
    assert answer.result().finish == "length"
    assert len(session.fed) == limit


def test_an_answer_cut_inside_a_character_shows_that() -> None:
    pieces, result = answered("a🙂", tokens=3)
    assert (result.text, pieces[-1]) == ("a\ufffd", Piece("\ufffd", None))


def test_the_context_ends_an_answer() -> None:
    session = Scripted(encoded("x" * 50))
    limits = Limits(1000, 10, TOKENIZER.end_tokens)
    answer = Generation(session, encoded("12345"), Sampler(Sampling()), TOKENIZER.stream(), limits)
    list(answer)
    assert (len(answer.result().tokens), answer.result().finish) == (5, "length")


@pytest.mark.parametrize("size", [10, 11, 500])
def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(size: int) -> None:
    limits = Limits(5, 10, frozenset())
    with pytest.raises(UsageError, match=rf"{size} tokens.* context of 10"):
        Generation(Scripted([]), [1] * size, Sampler(Sampling()), TOKENIZER.stream(), limits)


def test_what_a_session_already_holds_counts_against_the_context() -> None:
    session = Scripted([])
    session.position = 8
    with pytest.raises(UsageError, match=r"10 tokens.* context of 10"):
        Generation(session, [1, 2], Sampler(Sampling()), TOKENIZER.stream(), Limits(5, 10))


def test_an_empty_prompt_and_no_tokens_to_make_are_refused() -> None:
    with pytest.raises(UsageError, match="prompt is empty"):
        generation(Scripted([]), prompt="")
    with pytest.raises(UsageError, match="max-tokens 0"):
        generation(Scripted([]), tokens=0)


def test_a_stop_string_across_tokens_ends_the_answer_and_is_not_shown() -> None:
    pieces, result = answered("one\nUser: two", stops=("\nUser:",))
    assert "".join(piece.text for piece in pieces) == result.text == "one"
    assert (result.finish, result.stop) == ("stop", "\nUser:")
    assert len(result.tokens) == len("one\nUser:")


def test_text_that_only_began_like_a_stop_string_is_shown_in_the_end() -> None:
    pieces, result = answered("one\nUs", stops=("\nUser:",))
    assert [piece.text for piece in pieces] == ["o", "n", "e", "", "", "", "\nUs"]
    assert (result.text, result.finish, result.stop) == ("one\nUs", "stop", None)


def test_an_interrupted_answer_keeps_its_text_and_what_was_held_back() -> None:
    answer = generation(Scripted(encoded("one\nUser"), fail_at=6), stops=("\nUser:",))
    shown: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        shown.extend(piece.text for piece in answer)
    assert "".join(shown) == "one"
    assert [piece.text for piece in answer.rest()] == ["\nUs"]
    assert list(answer.rest()) == []
    assert (answer.result().text, answer.result().finish) == ("one\nUs", "interrupted")


def test_speeds_count_the_prompt_and_the_steps_after_it() -> None:
    _, result = answered("abc")
    assert result.decode_steps == 3  # the last of them gave the end token
    assert result.prompt_rate == pytest.approx(3 / result.prompt_seconds)
    assert result.decode_rate == pytest.approx(3 / result.decode_seconds)
    assert answered("a", tokens=1)[1].decode_rate is None


def test_a_model_gone_wrong_yields_no_token() -> None:
    class Broken(Scripted):
        def extend(self, tokens: Sequence[int]) -> Logits:
            return super().extend(tokens) * np.float32("nan")

    answer = generation(Broken(encoded("abc")))
    with pytest.raises(CorruptInputError, match="not finite"):
        list(answer)
    assert answer.result().tokens == ()


def first_complete(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The oracle: grow the text character by character until it ends with a stop string; the longest one wins."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(
    st.lists(st.text("ab🙂", max_size=4)), st.lists(st.text("ab🙂", min_size=1, max_size=4), max_size=3, unique=True)
)
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    found, shown = StopStrings(stops), ""
    for piece in pieces:
        shown += found.push(piece)
        assert not any(stop in shown for stop in stops)
        if found.found:
            break
    shown += found.finish()
    assert (shown, found.found) == first_complete("".join(pieces), stops)


@given(st.text("ab", max_size=8), st.text("ab", min_size=1, max_size=3))
def test_no_more_is_held_back_than_could_begin_a_stop_string(text: str, stop: str) -> None:
    stops = StopStrings([stop])
    shown = "".join(stops.push(character) for character in text)
    if stops.found is None:
        held = text[len(shown) :]
        assert stop.startswith(held)
        assert not any(stop.startswith(text[start:]) for start in range(len(shown)))


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        StopStrings(["a", ""])
