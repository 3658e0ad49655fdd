"""One pack that answers: wishes become prompts, and prompts are given to the batch.

Owns the defaults of a request, what of a prompt is worth remembering, and what a state on disk depends on. Knows
neither HTTP nor any protocol.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ...layout.reader import Pack
from ...manifests.errors import MoepackError, UsageError
from ..answers.constraint import Constraint, Grammars
from ..answers.dialect import Calls, Dialect, Thinking
from ..answers.grammar import grammar
from ..answers.reader import AnswerReader
from ..engine import Engine, EngineOptions
from ..generate import SHORTER, Limits, RoomError, Steps, check_room
from ..language import Language
from ..operations import HEAD_ROWS
from ..penalties import Penalizer
from ..prompt import Chat, raw_tokens
from ..sampling import Sampler, Sampling
from ..serving.answer import Answer, Scorer
from ..serving.request import Request
from ..serving.scheduler import BusyError, Scheduler
from ..sessions.identity import identity
from ..sessions.prefixes import Prefixes
from ..sessions.store import Store
from ..state import FLOAT_BYTES
from .channel import Channel, Pending, Post
from .settings import Settings
from .wishes import SEEDS, Ask, ChatWish, Wish, WishError

SERVER_BYTES = 40_000_000  # measured: 25 MB for libraries, llguidance and streams; the rest is for requests' bodies
PLAUSIBLE = 16  # characters of text for each token of the context: a longer text is looked at before it is encoded
PIECE = 65536  # characters
PREPARED_AT_ONCE = 2  # prompts that are rendered and encoded, which takes many times their bytes
GRAMMAR_READING = 14  # measured: the peak of llguidance reading a vocabulary, in sizes of the tokenizer.json
MOST_SCORED = 4096  # tokens of a prompt whose logprobs are told
SCORED_BYTES = 4096  # each; measured, 5 alternatives: 1.5 KB, streamed 1.9, of tokens of 40 characters 2.0 and 2.8
WAITING_PART = 4  # one part in four of the memory for prompts is for those that wait to be written


class ScoringError(BusyError):
    """Another prompt's logprobs are being told, which takes memory that is there once."""

    def __init__(self) -> None:
        MoepackError.__init__(self, "another prompt's logprobs are being told, one at a time; try again in 1 s")
        self.seconds = 1.0


@dataclass
class Service:
    """What the endpoints ask. `name` is the model's."""

    name: str
    engine: Engine
    language: Language
    scheduler: Scheduler
    post: Post
    prefixes: Prefixes
    settings: Settings
    created: int

    def __post_init__(self) -> None:
        self._special = self.language.special_markup
        self._grammars: Grammars | None = None
        self._asking = ""  # how the last chat's text asked for an answer
        self._lock = threading.Lock()
        self._preparing = threading.BoundedSemaphore(PREPARED_AT_ONCE)
        self._scoring = threading.Lock()

    def chat(self, wish: ChatWish) -> Ask:
        """A chat as a prompt; takes as long as its text. Raises UsageError for what the pack cannot follow."""
        template, tools = self.language.template, wish.form.tools or None
        if template is None:
            raise UsageError("this pack has no chat template; use /v1/completions")
        chat = Chat(wish.messages, tools, wish.variables)
        with self._preparing:
            text = template.render(chat.messages, tools=chat.tools, variables=chat.variables)
            self._require_room(text)
            tokens, marks = self.language.tokenizer.encode_cut(text, self._beginnings(chat, text))
        dialect = Dialect.of(template.source(with_tools=tools is not None))
        thinking = dialect.thinking(text)
        calls = dialect.calls if tools else None
        return replace(
            self._ask(tokens, wish.wish),
            marks=frozenset(marks),
            calls=calls,
            thinking=thinking,
            tools=wish.form.tools,
            constraint=self._constraint(wish, dialect.calls, thinking),
            one_call=not wish.form.parallel and calls is not None,
            first_call=wish.first_call,
            special=self._special,
        )

    def text(self, prompt: str | Sequence[int], wish: Wish) -> Ask:
        """A bare text, or its tokens, to be continued."""
        ask = self._ask(self._tokens(prompt), wish)
        if not wish.echo:
            return ask
        if wish.top_logprobs is not None and (count := len(ask.tokens)) > MOST_SCORED:
            said = f"of {MOST_SCORED} tokens at most the logprobs are told, and it has {count}; send shorter pieces"
            raise WishError("prompt", said)
        text = prompt if isinstance(prompt, str) else self.language.tokenizer.decode(ask.tokens, special=True)
        return replace(ask, echo=text, nothing=wish.nothing)

    def _tokens(self, prompt: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        with self._preparing:
            self._require_room(prompt)
            return raw_tokens(prompt, self.language.tokenizer)

    def encoded(self, text: str, *, add_special: bool) -> list[int]:
        """A text as tokens, whatever becomes of them. Raises UsageError for one that is far too long."""
        with self._preparing:
            self._require_room(text)
            return self.language.tokenizer.encode(text, add_special_tokens=add_special)

    def begin(self, ask: Ask, client: str) -> Pending:
        """Queue it for a client, in an event loop.

        Raises BusyError if too many wait or another prompt's logprobs are being told, UsageError if it can never be
        computed.
        """
        with ExitStack() as held:
            if ask.scored:
                self._hold_scoring(held)
            channel = Channel(self.settings.limits.parts, self.post)
            answers = [self._answer(self._choice(ask, index), index, channel) for index in range(ask.choices)]
            requests = [Request(ask.tokens, answer, ask.marks, read=answer.read, client=client) for answer in answers]
            self.scheduler.submit(*requests)
            return Pending(channel, requests, self.scheduler.cancel, held.pop_all())

    def _hold_scoring(self, held: ExitStack) -> None:
        if not self._scoring.acquire(blocking=False):
            raise ScoringError
        held.callback(self._scoring.release)

    def _choice(self, ask: Ask, index: int) -> Ask:
        """One answer of several: a later one is what the seed after gives, and is held to its form on its own."""
        seed = None if ask.sampling.seed is None else (ask.sampling.seed + index) % SEEDS
        constraint = None if ask.constraint is None else ask.constraint.copy()
        return replace(ask, sampling=replace(ask.sampling, seed=seed), constraint=constraint)

    def _answer(self, ask: Ask, index: int, channel: Channel) -> Answer:
        room = min(ask.limits.max_tokens, check_room(0, ask.tokens, ask.limits))
        stream = self.language.tokenizer.stream(special=ask.special)
        penalizer = Penalizer(ask.penalties, ask.tokens)
        steps = Steps(Sampler(ask.sampling), stream, ask.limits, room, ask.constraint, penalizer)
        reader = AnswerReader(ask.calls, ask.thinking, ask.tools)
        scorer = Scorer(ask.tokens, ask.top_logprobs or 0) if ask.scored else None
        return Answer(
            steps,
            reader,
            channel.put,
            top_logprobs=ask.top_logprobs,
            one_call=ask.one_call,
            index=index,
            scorer=scorer,
            nothing=ask.nothing,
        )

    def _require_room(self, text: str) -> None:
        """Refuse a text that is far too long before it is encoded as a whole, which takes a hundred times its bytes."""
        context = self.engine.context
        if len(text) <= PLAUSIBLE * context:
            return
        left = 2 * context  # a piece's first and last token may be others than in the whole text
        for first in range(0, len(text), PIECE):
            left -= len(self.language.tokenizer.encode(text[first : first + PIECE], add_special_tokens=False))
            if left < 0:
                raise RoomError(f"prompt is too long: it has more than the whole context's {context} tokens; {SHORTER}")

    def _ask(self, tokens: Sequence[int], wish: Wish) -> Ask:
        given: dict[str, Any] = dict(wish.sampling)
        context, ends = self.engine.context, self.language.tokenizer.end_tokens
        longest = next(size for size in (wish.max_tokens, self.language.max_tokens, context) if size is not None)
        vocabulary = self.engine.model.vocab_size
        unknown = next((token for token in tokens if not 0 <= token < vocabulary), None)
        if unknown is not None:
            raise UsageError(f"token {unknown} is outside the model's vocabulary of {vocabulary}")
        unknown = next((token for token in wish.penalties.biases if token >= vocabulary), None)
        if unknown is not None:
            raise WishError("logit_bias", f"token {unknown} is outside the model's vocabulary of {vocabulary}")
        if wish.choices > (most := self.settings.queue_each):
            raise WishError("n", f"the queue has room for {most} of one client only; ask for fewer choices")
        limits = Limits(longest, context, ends, tuple(wish.stops))
        check_room(0, tokens, limits)
        sampling: Sampling = replace(self.language.sampling, **given)
        told: dict[str, Any] = {"top_logprobs": wish.top_logprobs, "choices": wish.choices}
        return Ask(tokens, sampling, limits, penalties=wish.penalties, **told)

    def _constraint(self, wish: ChatWish, calls: Calls | None, thinking: Thinking) -> Constraint | None:
        """What the answer is held to. One thread at a time: compiled grammars are shared."""
        if grammar(wish.form, calls, thinking) is None:
            return None
        with self._lock:
            self._grammars = self._grammars or Grammars(self.language.tokenizer)
            return self._grammars.constraint(wish.form, calls, thinking)

    def _beginnings(self, chat: Chat, text: str) -> list[int]:
        """How much of a chat's text others may begin with, too: system message and tools, and the messages so far."""
        system = 0 if chat.messages[0]["role"] != "system" else 1
        return [len(self._beginning(chat, chat.messages[:system], text)), self._said(chat, text)]

    def _said(self, chat: Chat, text: str) -> int:
        """How much of a chat's text its messages are.

        What follows them is nearly always what followed the last chat's, so they are not rendered again to know. A
        wrong guess marks another place, which is worth less and does no harm.
        """
        if self._asking and text.endswith(self._asking):
            return len(text) - len(self._asking)
        said = len(self._beginning(chat, chat.messages, text))
        self._asking = text[said:] if said else ""
        return said

    def _beginning(self, chat: Chat, messages: Sequence[Any], text: str) -> str:
        """The text of some messages, where the whole chat's begins with it."""
        assert self.language.template is not None
        try:
            begun = self.language.template.render(
                messages, tools=chat.tools, add_generation_prompt=False, variables=chat.variables
            )
        except UsageError:  # some templates want a user's message
            return ""
        return begun if text.startswith(begun) else ""


@contextmanager
def serving(pack: Pack, language: Language, options: EngineOptions, settings: Settings) -> Iterator[Service]:
    """The pack, read and ready; at the end all requests fail, and the state's folder is free again."""
    with ExitStack() as resources:
        root = pack.digest
        store, queue = None, 0
        if settings.state is not None:
            queue = settings.prefix_bytes // WAITING_PART
            store = Store(settings.state / root, settings.state_bytes, queue)
            resources.callback(store.close)
        reserved = replace(options, prefix_bytes=settings.prefix_bytes + server_bytes(pack, options.context))
        engine = resources.enter_context(Engine.of(pack, reserved))
        prefixes = Prefixes(settings.prefix_bytes - queue, identity(root, engine), store)
        post = Post()
        scheduler = Scheduler(engine, prefixes, settings.queue, settings.queue_each, post.send)
        resources.enter_context(scheduler)
        name = pack.path.resolve().name
        yield Service(name, engine, language, scheduler, post, prefixes, settings, int(time.time()))


def server_bytes(pack: Pack, context: int | None) -> int:
    """What serving adds to a process that generates; without a context, what it takes at most."""
    tokenizer = pack.path / "tokenizer.json"
    grammars = GRAMMAR_READING * (tokenizer.stat().st_size if tokenizer.exists() else 0)
    read = HEAD_ROWS * FLOAT_BYTES * pack.model.vocab_size  # logits of a prompt that is read
    scored = SCORED_BYTES * min(context or pack.model.max_position_embeddings, MOST_SCORED)
    return SERVER_BYTES + grammars + read + scored
