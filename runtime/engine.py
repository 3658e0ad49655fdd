"""An opened pack, ready to run: the trunk in memory, experts streamed, sessions that turn tokens into logits.

Logits depend on the pack, the tokens and K; never on threads, slots or what was read when, nor, on the CPU, on chunk
size. The engine knows token numbers only: text, sampling and stopping belong to its callers.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..layout.reader import Pack
from ..manifests import schema
from ..manifests.errors import UsageError
from . import weights
from .backends import choice
from .backends.base import Backend, Floats
from .disk import Tuning, tune
from .experts import ExpertStream
from .memory import MemoryPlan, plan
from .model import Given, TextModel
from .sessions.snapshot import Snapshot, copy, restore, rewind
from .state import State, position_bytes, recurrent_bytes
from .streaming.files import Access
from .trace import Recorder


def cpus() -> int:
    """As many threads as this process may run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class EngineOptions:
    """How to run a pack. None leaves a choice to the engine.

    `memory`: bytes for the whole process. `slots`: expert records kept in memory. `experts_per_token`: K, at most the
    model's. `chunk`: most prompt tokens computed together. `context`: the longest sequence. `check_digests`: compare
    the trunk with the pack's digest, and every record before logits that came of it are given. `exact`: products see
    activations as float32, where otherwise those with quantized matrices see them rounded to fifteen bits.
    `sessions`: sequences that memory is planned for. `prefix_bytes`: memory that is left to remembered prompts.
    `access`: read experts around the page cache or through it; by default whichever disk.tune finds better.
    `backend`: what computes; "auto" is Metal on a Mac and the CPU elsewhere.
    """

    threads: int = field(default_factory=cpus)
    memory: int | None = None
    slots: int | None = None
    experts_per_token: int | None = None
    chunk: int | None = None
    context: int | None = None
    check_digests: bool = True
    exact: bool = False
    access: Access | None = None
    backend: choice.Kind = "auto"
    sessions: int = 1
    prefix_bytes: int = 0


@dataclass(frozen=True)
class EngineStats:
    """Totals since the engine was opened; `resident` is the memory plan's bytes by part.

    `wait_seconds`: nothing could be computed for want of a record; `read_seconds`: at least one read was under way.
    `foreseen` records were read on a guess, of which `foreseen_used` were right. `stages`: seconds by part of a layer.
    """

    records_read: int
    bytes_read: int
    slot_hits: int
    wait_seconds: float
    resident: Mapping[str, int]
    read_seconds: float = 0.0
    foreseen: int = 0
    foreseen_used: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)


class Engine:
    """Runs one pack. A context manager; one session computes at a time."""

    def __init__(self, pack: Pack, options: EngineOptions, memory: MemoryPlan, backend: Backend) -> None:
        """Read the trunk; `of` and `open` make what this is given."""
        self.model: schema.Model = pack.model
        self.options = options
        self.memory = memory
        self.backend = backend
        self.experts_per_token = _experts_per_token(pack.model, options)
        self.tuning = tuning(pack, options.access)  # before the trunk is there: a first measurement needs memory
        trunk = weights.load(pack, backend, check_digest=options.check_digests)
        self._experts = ExpertStream(
            pack, memory.slots, check_digests=options.check_digests, tuning=self.tuning, memory=backend.slots
        )
        self._decoder = TextModel(pack.model, trunk, pack.records, self._experts, backend, self.experts_per_token)
        self._resources = ExitStack()
        self._resources.callback(self._experts.close)
        self._resources.callback(self._decoder.close)  # first: what is under way reads the experts' memory
        self.closed = False

    @classmethod
    def open(cls, path: Path, options: EngineOptions | None = None) -> "Engine":
        """Open the pack at `path` and read its trunk.

        Raises UsageError for options that cannot be met (K above the model's, too little memory), and what Pack.open
        raises; MismatchError if the trunk is damaged.
        """
        with ExitStack() as resources:
            engine = cls.of(resources.enter_context(Pack.open(path)), options)
            own, engine._resources = engine._resources, resources.pop_all()
            engine._resources.push(own)  # the pack is closed last
            return engine

    @classmethod
    def of(cls, pack: Pack, options: EngineOptions | None = None) -> "Engine":
        """Read the trunk of an opened pack, which must stay open as long as the engine and is not closed with it.

        Raises as `open` does; options are checked, and memory is planned, before anything is read.
        """
        options = options or EngineOptions()
        memory, k = plan_run(pack, options), _experts_per_token(pack.model, options)
        backend = choice.open_backend(options.backend, pack.model, memory, k, options.threads, exact=options.exact)
        return cls(pack, options, memory, backend)

    @property
    def context(self) -> int:
        """The most tokens a session can hold."""
        return self.memory.context

    @property
    def access(self) -> Access:
        """How experts are read; see ExpertStream.access."""
        return self._experts.access

    @property
    def stats(self) -> EngineStats:
        """Reads so far, and where the memory is."""
        read = self._experts.stats
        return EngineStats(
            read.records_read,
            read.bytes_read,
            read.hits,
            read.wait_seconds,
            self.memory.parts(),
            read.read_seconds,
            read.foreseen,
            read.foreseen_used,
            dict(self._decoder.stages.seconds),
        )

    def record(self, trace: Recorder) -> None:
        """From now on `trace` hears where time goes; UNTRACED ends it."""
        self._decoder.stages.trace = trace
        self.backend.record(trace)

    def new_session(self) -> "Session":
        """A session at position 0."""
        return Session(self, self._decoder, State(self.model, self.backend, self.context))

    def extend(self, turns: Sequence["Turn"]) -> list[Floats]:
        """Give sessions more tokens, all at once: of each the logits that it wants, float32 [wanted, vocab].

        Every expert that any token wants is read once for all of them, and logits are those that each session alone
        would get; on Metal but for last bits. All tokens together are at most memory.chunk, which is the caller's care,
        and no session comes twice: ValueError. Raises as Session.extend does; an error of reading ends all of them.
        """
        sessions = {id(turn.session) for turn in turns}
        if len(sessions) < len(turns) or sum(len(turn.tokens) for turn in turns) > self.memory.chunk:
            raise ValueError(f"at most {self.memory.chunk} tokens of sessions that differ can be computed at once")
        for turn in turns:
            turn.session.check(turn.tokens)
        return advance(self._decoder, turns)

    def fill(self) -> bool:
        """While nothing is computed: read a few experts into memory that waits for some; False once that is done.

        So the first who needs them finds them. Raises StorageError or MismatchError for those that cannot be read.
        """
        return self._experts.fill()

    def close(self) -> None:
        """End the engine's threads, and close the pack if the engine opened it; its sessions end too."""
        self.closed = True
        self._resources.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Session:
    """One sequence of tokens. After an error it cannot be extended: its state would be half a chunk ahead."""

    def __init__(self, engine: Engine, decoder: TextModel, state: State) -> None:
        self._engine = engine
        self._decoder = decoder
        self.state = state
        self.failed = False  # in the middle of a chunk, or for good

    @property
    def position(self) -> int:
        """How many tokens have been given."""
        return self.state.position

    def extend(self, tokens: Sequence[int]) -> Floats:
        """Give more tokens; returns the logits after the last one, float32 [vocab].

        Raises UsageError for no tokens, unknown tokens or more than the context holds, StorageError and MismatchError
        if experts cannot be read or are damaged.
        """
        *before, last = self._chunks(tokens)
        for part in before:
            self._advance(part, wanted=0)
        return self._advance(last, wanted=1)[0]  # type: ignore[no-any-return]

    def extend_all(self, tokens: Sequence[int]) -> Floats:
        """Give more tokens; returns the logits after each, float32 [len(tokens), vocab]. Raises as `extend` does."""
        return np.concatenate([self._advance(part, wanted=len(part)) for part in self._chunks(tokens)])

    def _chunks(self, tokens: Sequence[int]) -> list[Sequence[int]]:
        """The tokens as they are computed together, once they have been checked."""
        self.check(tokens)
        size = self._engine.memory.chunk
        return [tokens[first : first + size] for first in range(0, len(tokens), size)]

    def _advance(self, tokens: Sequence[int], *, wanted: int) -> Floats:
        """One chunk: the logits after its last `wanted` tokens."""
        return advance(self._decoder, [Turn(self, tokens, wanted)])[0]

    def snapshot(self, first: int, last: int | None = None) -> Snapshot:
        """A copy of what its positions from `first` on left behind, or those up to a `last` that the last turn marked.

        Raises UsageError after an error.
        """
        self._require_usable()
        return Snapshot.of(self.state, first, self.position if last is None else last, self._engine.backend)

    def snapshot_bytes(self, first: int, last: int) -> int:
        """The size of such a copy."""
        model = self._engine.model
        return recurrent_bytes(model) + (last - first) * position_bytes(model)

    def restore(self, snapshots: Sequence[Snapshot]) -> None:
        """Go to the end of snapshots that follow each other from position 0 on, or to 0, whatever happened before.

        They must be of this pack, K and arithmetic. Raises UsageError if the engine is closed or the context too small.
        """
        self._require_open()
        last = snapshots[-1].last if snapshots else 0
        if last > self._engine.context:
            raise UsageError(
                f"{last} tokens do not fit the context of {self._engine.context}; ask for a larger context"
            )
        self.failed = True
        restore(self.state, snapshots, self._engine.backend)
        self.failed = False

    def follow(self, other: "Session") -> None:
        """Go to where another session of the engine is, whatever happened before. Raises UsageError if it failed."""
        other._require_usable()
        self.failed = True
        copy(self.state, other.state, self._engine.backend)
        self.failed = False

    def rewind(self, snapshot: Snapshot) -> None:
        """Go back to the end of a snapshot of this session, all tokens before which it still has, failed or not."""
        self._require_open()
        self.failed = True
        rewind(self.state, snapshot, self._engine.backend)
        self.failed = False

    def check(self, tokens: Sequence[int]) -> None:
        """Raise UsageError if the session cannot be given these tokens, as `extend` does."""
        self._require_usable()
        if len(tokens) == 0:
            raise UsageError("there are no tokens to continue from; give a prompt of at least one token")
        if self.position + len(tokens) > self._engine.context:
            raise UsageError(
                f"{self.position + len(tokens)} tokens do not fit the context of {self._engine.context};"
                " shorten the prompt or ask for a larger context"
            )
        unknown = next((token for token in tokens if not 0 <= token < self._engine.model.vocab_size), None)
        if unknown is not None:
            raise UsageError(f"token {unknown} is outside the model's vocabulary of {self._engine.model.vocab_size}")

    def _require_open(self) -> None:
        if self._engine.closed:
            raise UsageError("the engine of this session is closed; open the pack again")

    def _require_usable(self) -> None:
        self._require_open()
        if self.failed:
            raise UsageError("this session was ended by an error; start a new one")


@dataclass(frozen=True)
class Turn:
    """Tokens that a session is given, at least one; logits are `wanted` after the last so many of them.

    `marks`: numbers of tokens, less than all, after which a snapshot may be wanted, until the session's next turn.
    `read` is given the logits after all tokens, some rows at a time, before it is known whether the pass succeeds; it
    must not raise.
    """

    session: Session
    tokens: Sequence[int]
    wanted: int = 1
    marks: Sequence[int] = ()
    read: Callable[[Floats], None] | None = None


def advance(decoder: TextModel, turns: Sequence[Turn]) -> list[Floats]:
    """One chunk of turns that were checked: the logits of each."""
    for turn in turns:
        turn.session.failed = True
    logits = decoder.logits(
        [Given(turn.tokens, turn.session.state, turn.wanted, turn.marks, turn.read) for turn in turns]
    )
    for turn in turns:
        turn.session.state.position += len(turn.tokens)
        turn.session.failed = False
    return logits


def plan_run(pack: Pack, options: EngineOptions) -> MemoryPlan:
    """How a run with these options would divide the memory; reads nothing but the pack's manifest and file sizes.

    Raises UsageError and UnsupportedError, as Engine.of would, for options that cannot be met.
    """
    choice.check_threads(options.threads)
    if options.chunk is not None and options.chunk < 1:
        raise UsageError(f"chunks of {options.chunk} tokens: they must be of at least 1")
    if options.chunk is not None and options.chunk < options.sessions:
        raise UsageError(f"chunks of {options.chunk} tokens are too few for {options.sessions} sequences at once")
    needs = choice.needs_of(options.backend, pack, _experts_per_token(pack.model, options))
    sizes = {"slots": options.slots, "context": options.context, "chunk": options.chunk}
    return plan(
        pack, memory=options.memory, sessions=options.sessions, prefixes=options.prefix_bytes, needs=needs, **sizes
    )


def tuning(pack: Pack, access: Access | None) -> Tuning:
    """How a run reads the pack's disk: the best way known, or that way with another `access`, of unknown speed."""
    best = tune(pack)
    if access in (None, best.access):
        return best
    return replace(best, access=access, gigabytes_per_second=None, measured=False)


def _experts_per_token(model: schema.Model, options: EngineOptions) -> int:
    wanted = model.num_experts_per_tok if options.experts_per_token is None else options.experts_per_token
    if not 1 <= wanted <= model.num_experts_per_tok:
        raise UsageError(
            f"{wanted} experts per token are outside the model's 1 to {model.num_experts_per_tok};"
            " it was trained with the largest of these"
        )
    return wanted
