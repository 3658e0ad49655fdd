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
from ...manifests.errors import UsageError
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
from ..serving.scheduler import Scheduler
from ..sessions.identity import identity
from ..sessions.prefixes import Prefixes
from ..sessions.store import Store
from ..state import FLOAT_BYTES
from ..template import ChatTemplate
from . import allowance
from .allowance import Allowance, Share
from .channel import Channel, Pending, Post
from .settings import Settings
from .wishes import SEEDS, Ask, ChatWish, Wish, WishError

SERVER_BYTES = 40_000_000  # measured: 25 MB for libraries, llguidance and streams; the rest is for requests' bodies
PLAUSIBLE = 16  # characters of text for each token of the context: a longer text is looked at before it is encoded
PIECE = 65536  # characters
PREPARED_AT_ONCE = 2  # prompts that are rendered and encoded, which takes many times their bytes
GRAMMAR_READING = 14  # measured: the peak of llguidance reading a vocabulary, in sizes of the tokenizer.json
WAITING_PART = 4  # one part in four of the memory for prompts is for those that wait to be written
Prompt = str | Sequence[int]


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
        self._allowance = Allowance()

    def chat(self, wish: ChatWish) -> Ask:
        """A chat as a prompt; takes as long as its text. Raises UsageError for what the pack cannot follow."""
        template, tools = self._template(), wish.form.tools or None
        chat = Chat(wish.messages, tools, wish.variables)
        self._require_places(wish.wish.choices, "n")
        with self._preparing:
            text = self._rendered(chat)
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

    def counted(self, wish: ChatWish) -> list[int]:
        """A chat as tokens, whatever becomes of them. Raises UsageError for one that is far too long."""
        chat = Chat(wish.messages, wish.form.tools or None, wish.variables)
        with self._preparing:
            return self.language.tokenizer.encode(self._rendered(chat), add_special_tokens=False)

    def _template(self) -> ChatTemplate:
        if self.language.template is None:
            raise UsageError("this pack has no chat template; use /v1/completions")
        return self.language.template

    def _rendered(self, chat: Chat) -> str:
        text = self._template().render(chat.messages, tools=chat.tools, variables=chat.variables)
        self._require_room(text)
        return text

    def texts(self, prompts: Sequence[Prompt], wish: Wish) -> list[Ask]:
        """Bare texts, or their tokens, each to be continued."""
        one = "n" if wish.best is None else "best_of"
        self._require_places(len(prompts) * wish.choices, "prompt" if len(prompts) > 1 else one)
        if len(prompts) == 1:
            return [self._text(prompts[0], wish)]
        return [self._one_text(prompt, wish, f"prompt[{index}]") for index, prompt in enumerate(prompts)]

    def _one_text(self, prompt: Prompt, wish: Wish, place: str) -> Ask:
        try:
            return self._text(prompt, wish)
        except RoomError as error:
            raise RoomError(f"{place}: {error}") from error

    def _text(self, prompt: Prompt, wish: Wish) -> Ask:
        ask = self._ask(self._tokens(prompt), wish)
        if not wish.echo:
            return ask
        text = prompt if isinstance(prompt, str) else self.language.tokenizer.decode(ask.tokens, special=True)
        return replace(ask, echo=text, nothing=wish.nothing)

    def _tokens(self, prompt: Prompt) -> list[int]:
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

    def begin(self, asks: Sequence[Ask], client: str) -> Pending:
        """Queue all answers to one request of a client, or none, in an event loop; they are numbered in order.

        Raises BusyError if too many wait or too many logprobs are kept, UsageError if it can never be computed.
        """
        share = Share(self._allowance, allowance.of_prompts(asks))
        try:
            channel = Channel(self.settings.limits.parts, self.post)
            choices = [self._choice(ask, index) for ask in asks for index in range(ask.choices)]
            requests = [self._request(choice, index, channel, client) for index, choice in enumerate(choices)]
            self.scheduler.submit(*requests)
        except BaseException:
            share.give_back()
            raise
        return Pending(channel, requests, self.scheduler.cancel, share)

    @property
    def logprob_bytes(self) -> int:
        """Memory of logprobs that are told at the end of answers."""
        return self._allowance.taken

    def _choice(self, ask: Ask, index: int) -> Ask:
        """One answer of several: a later one is what the seed after gives, and is held to its form on its own."""
        seed = None if ask.sampling.seed is None else (ask.sampling.seed + index) % SEEDS
        constraint = None if ask.constraint is None else ask.constraint.copy()
        return replace(ask, sampling=replace(ask.sampling, seed=seed), constraint=constraint)

    def _request(self, ask: Ask, index: int, channel: Channel, client: str) -> Request:
        answer = self._answer(ask, index, channel)
        return Request(ask.tokens, answer, ask.marks, read=answer.read, client=client)

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
            top_logprobs=ask.likely,
            one_call=ask.one_call,
            index=index,
            scorer=scorer,
            nothing=ask.nothing,
        )

    def _require_places(self, count: int, field: str) -> None:
        """Refuse what never finds its places in the queue before it is prepared."""
        if count > (most := self.settings.queue_each):
            said = f"the queue has room for {most} of one client only, and these are {count} answers"
            raise WishError(field, f"{said}; ask for fewer at once, or serve with a longer --queue")

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
        limits = Limits(longest, context, ends, tuple(wish.stops))
        check_room(0, tokens, limits)
        sampling: Sampling = replace(self.language.sampling, **given)
        told: dict[str, Any] = {"top_logprobs": wish.top_logprobs, "choices": wish.choices, "best": wish.best}
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
        try:
            begun = self._template().render(
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
        reserved = replace(options, prefix_bytes=settings.prefix_bytes + server_bytes(pack))
        engine = resources.enter_context(Engine.of(pack, reserved))
        prefixes = Prefixes(settings.prefix_bytes - queue, identity(root, engine), store)
        post = Post()
        scheduler = Scheduler(engine, prefixes, settings.queue, settings.queue_each, post.send)
        resources.enter_context(scheduler)
        name = pack.path.resolve().name
        yield Service(name, engine, language, scheduler, post, prefixes, settings, int(time.time()))


def server_bytes(pack: Pack) -> int:
    """What serving adds to a process that generates."""
    tokenizer = pack.path / "tokenizer.json"
    grammars = GRAMMAR_READING * (tokenizer.stat().st_size if tokenizer.exists() else 0)
    read = HEAD_ROWS * FLOAT_BYTES * pack.model.vocab_size  # logits of a prompt that is read
    return SERVER_BYTES + grammars + read + allowance.PLANNED_BYTES
