"""The model's side of a conversation: an answer is computed from where the last one ended, by generate's own loop.

Promises that each answer is what `generate --messages` gives for the conversation so far, with the same settings and
seed: on CPUs token by token, on Metal but for last bits of logits. Knows no terminal.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

from ...manifests.errors import UsageError
from ..answers.dialect import Dialect
from ..answers.events import Event
from ..answers.message import Assembly, Message
from ..answers.reader import AnswerReader
from ..engine import Engine, EngineStats
from ..generate import Generation, Limits, Result, check_room
from ..language import Language
from ..prompt import Chat
from ..sampling import Sampler, Sampling
from .conversation import Conversation, Entry
from .recall import Recall

SHORTER = "/reset begins anew, and a larger --context takes more memory"
PROBE = "x"  # any text, to see where a template's rendering of a longer conversation parts from that of this one


@dataclass(frozen=True)
class Settings:
    """How answers are made. Raises UsageError as generate.Limits does."""

    sampling: Sampling
    max_tokens: int
    stops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.limits(1, frozenset())

    def limits(self, context: int, end_tokens: frozenset[int]) -> Limits:
        """What ends an answer."""
        return Limits(self.max_tokens, context, end_tokens, self.stops)


@dataclass(frozen=True)
class Figures:
    """What one answer took; `records` of the experts wanted were read, `hits` were in memory."""

    result: Result
    prompt: int
    context_used: int
    context: int
    bytes_read: int
    records: int
    hits: int


class _Reads(TypedDict):
    bytes_read: int
    records: int
    hits: int


class Turn:
    """One answer: iterate over its events, then over those of `finish`, then ask for `message` and `figures`.

    `stop` is asked after each token whether that was enough; an interrupt in the middle may leave the loop, too.
    """

    def __init__(self, generation: Generation, reader: AnswerReader, first_call: int, stop: Callable[[], bool]) -> None:
        self._generation, self._reader, self._stop = generation, reader, stop
        self._assembly = Assembly(first_call)

    def __iter__(self) -> Iterator[Event]:
        for piece in self._generation:
            yield from self._heard(self._reader.push(piece.text))
            if self._stop():
                return

    def finish(self) -> Iterator[Event]:
        """What was held back, once."""
        for piece in self._generation.rest():
            yield from self._heard(self._reader.push(piece.text))
        yield from self._heard(self._reader.finish())

    @property
    def message(self) -> Message:
        """What was said."""
        return self._assembly.message()

    @property
    def result(self) -> Result:
        """How it went."""
        return self._generation.result()

    @property
    def stopped(self) -> bool:
        """Whether the user ended it."""
        return self.result.finish == "interrupted"

    def _heard(self, events: Sequence[Event]) -> Sequence[Event]:
        self._assembly.add(events)
        return events


class Partner:
    """Answers conversations, one after another, with one session of an engine."""

    def __init__(self, engine: Engine, language: Language, settings: Settings) -> None:
        if language.template is None:
            raise UsageError("this pack has no chat template; use moe-run generate, which continues a text")
        self.engine, self.settings = engine, settings
        self.recall = Recall(engine)
        self._tokenizer, self._template = language.tokenizer, language.template
        self._special = language.special_markup
        self._before, self._position = engine.stats, 0

    def thinks(self, conversation: Conversation) -> bool:
        """Whether the template knows thinking."""
        return self._dialect(conversation).thinks

    def turn(self, conversation: Conversation, stop: Callable[[], bool]) -> Turn:
        """The answer to a conversation. Raises UsageError if the template refuses it or the context has no room."""
        text = self._render(conversation.chat())
        prompt = self._encode(text)
        settings, tools = self.settings, conversation.tools or []
        limits = settings.limits(self.engine.context, self._tokenizer.end_tokens)
        check_room(0, prompt, limits, SHORTER)
        rest = self.recall.begin(prompt, self._place(conversation, prompt))
        self._before, self._position = self.engine.stats, self.recall.position
        stream = self._tokenizer.stream(special=self._special)
        generation = Generation(self.recall, rest, Sampler(settings.sampling), stream, limits)
        dialect = self._dialect(conversation)
        reader = AnswerReader(dialect.calls if tools else None, dialect.thinking(text), tools)
        return Turn(generation, reader, conversation.first_call, stop)

    def figures(self, turn: Turn) -> Figures:
        """What the last turn took."""
        now, before = self.engine.stats, self._before
        return Figures(
            result=turn.result,
            prompt=turn.result.prompt_tokens + self._position,
            context_used=self.recall.position,
            context=self.engine.context,
            **_difference(now, before),
        )

    def _dialect(self, conversation: Conversation) -> Dialect:
        return Dialect.of(self._template.source(with_tools=bool(conversation.tools)))

    def _render(self, chat: Chat) -> str:
        return self._template.render(chat.messages, tools=chat.tools, variables=chat.variables)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _place(self, conversation: Conversation, prompt: Sequence[int]) -> int:
        """Where the prompt of a later turn will part from this one at the latest; 0 if the template refuses to tell."""
        try:
            later = self._render(conversation.chat(Entry("assistant", PROBE), Entry("user", PROBE)))
        except UsageError:
            return 0
        pairs = zip(prompt, self._encode(later), strict=False)
        return next((index for index, (one, other) in enumerate(pairs) if one != other), len(prompt))


def _difference(now: EngineStats, before: EngineStats) -> _Reads:
    return {
        "bytes_read": now.bytes_read - before.bytes_read,
        "records": now.records_read - before.records_read,
        "hits": now.slot_hits - before.slot_hits,
    }
