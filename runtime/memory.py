"""The memory plan: what a run needs besides experts, and how many expert slots the rest of the budget holds.

The budget is for the whole process, at its peak. It is a promise: what does not fit is refused before anything is
allocated, with the smallest budget that works. What nobody asked for (budget, context, chunk) is chosen here.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..layout.reader import Pack
from ..manifests import schema
from ..manifests.errors import UsageError
from . import host
from .arena import HUGE_PAGE
from .decoding import FEW_TOKENS
from .model import SPAN
from .quantities import megabytes
from .state import FLOAT_BYTES, delta_channels, position_bytes, recurrent_bytes
from .streaming.slots import slot_pitch
from .trunk import trunk_bytes

PROCESS_BYTES = 74_000_000  # measured: interpreter, libraries, a chat, threads; with an allocator kept by bound_heap
TOKENIZER_READING = 11  # measured: the peak of reading a tokenizer.json, in sizes of that file; before the trunk
TOKENIZER_KEPT = 5  # measured: what stays of it, in the same sizes
MESSAGE_STEP = 1_000_000  # budgets in messages are whole MB, written as GB
SHARE_OF_AVAILABLE = 0.75  # of the memory that is free now; the rest is for others and the page cache
DEFAULT_CONTEXT, LEAST_CONTEXT = 32768, 2048
DEFAULT_CHUNK, LEAST_CHUNK = 2048, 32
PART_OF_ROOM = 4  # caches take at most one part in four of what the trunk leaves, scratch of what is left then
ROUTE_FLOATS = 10  # per token and expert: its id and weight, and what sorting them by expert takes
STRETCH, BLOCK = 512, 32  # columns of rounded rows: they are padded to the one, and have factors for each of the other
PARTIAL_BYTES = 2_400_000  # at most, of attention: native/attention.cpp
CONVOLVED_TOKENS = 128  # at most, of the delta rule: native/delta.cpp
SAMPLING_COPIES = 10  # of the logits, in floats: sampling sorts and sums them in float64


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of each part, for `context` positions, `chunk` prompt tokens at a time and `slots` expert slots.

    Their sum is at most `budget`. `reason` says where a budget comes from that nobody asked for; else it is empty.
    """

    budget: int
    process: int
    trunk: int
    state: int
    scratch: int
    slots: int
    slot_bytes: int
    context: int
    chunk: int
    reason: str = ""
    prefixes: int = 0

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Bytes by part, as shown to the user."""
        experts = self.slots * self.slot_bytes
        fixed = {"process": self.process, "trunk": self.trunk, "state": self.state, "scratch": self.scratch}
        kept = {"prefixes": self.prefixes} if self.prefixes else {}
        return {**fixed, **kept, "experts": experts}


class Needs(Protocol):
    """What a pack's model needs on a backend, in bytes, and how many slots it can work with."""

    @property
    def process(self) -> tuple[int, int]:
        """What the process holds besides the model, and what it needs at most before the trunk is read."""

    @property
    def trunk(self) -> int:
        """The trunk."""

    def state(self, context: int) -> int:
        """A session's state, and what is kept for sequences of that length."""

    def scratch(self, chunk: int) -> int:
        """Activations at their peak."""

    @property
    def slots(self) -> range:
        """From the fewest slots that it can work with to the most."""

    @property
    def most(self) -> int | None:
        """The most for all parts but the process's, where a device has a limit of its own."""


@dataclass(frozen=True)
class HostNeeds:
    """What the CPU backend needs."""

    pack: Pack

    @property
    def process(self) -> tuple[int, int]:
        """See Needs."""
        return process_bytes(self.pack)

    @property
    def trunk(self) -> int:
        """See Needs."""
        return trunk_bytes(self.pack)

    def state(self, context: int) -> int:
        """See Needs."""
        return state_bytes(self.pack.model, context)

    def scratch(self, chunk: int) -> int:
        """See Needs."""
        return scratch_bytes(self.pack.model, chunk)

    @property
    def slots(self) -> range:
        """One is enough."""
        return range(1, sys.maxsize)

    @property
    def most(self) -> int | None:
        """None but the budget."""
        return None


def plan(
    pack: Pack,
    *,
    memory: int | None,
    slots: int | None = None,
    context: int | None = None,
    chunk: int | None = None,
    sessions: int = 1,
    prefixes: int = 0,
    needs: Needs | None = None,
) -> MemoryPlan:
    """Divide `memory` bytes (by default a share of what is available) by what a backend `needs`, by default the CPU's.

    `slots` fixes the number of expert slots, `context` the positions of each of `sessions` sequences, `chunk` how many
    tokens are computed together. Without them: a context of DEFAULT_CONTEXT and chunks of DEFAULT_CHUNK, halved while
    they take more than their part of the room or leave fewer slots than one layer of one token needs, though not below
    their least; slots get the rest. Raises UsageError, naming the smallest budget that works, if the parts do not fit,
    and for a context or number of slots outside the model's range.
    """
    budget = default_budget() if memory is None else Budget(memory)
    return _Division(pack, budget, needs or HostNeeds(pack), slots, context, chunk, sessions, prefixes).plan()


@dataclass(frozen=True)
class Budget:
    """Bytes for the process, and why as many, when nobody asked for them."""

    size: int
    reason: str = ""


class _Division:
    """One budget being divided; each step knows what those before it took."""

    def __init__(
        self,
        pack: Pack,
        budget: Budget,
        needs: Needs,
        slots: int | None,
        context: int | None,
        chunk: int | None,
        sessions: int,
        prefixes: int,
    ) -> None:
        model = pack.model
        if context is not None and not 1 <= context <= model.max_position_embeddings:
            most = model.max_position_embeddings
            raise UsageError(f"a context of {context} tokens is outside the model's 1 to {most}")
        fewest = needs.slots.start
        if not needs.slots:
            raise UsageError(
                f"this GPU's buffers hold {needs.slots.stop - 1} expert records, and a token needs {fewest} of a layer;"
                " run with --backend cpu"
            )
        if slots is not None and slots < fewest:
            raise UsageError(f"{slots} expert slots are too few; streaming needs at least {fewest} here")
        self._model, self._needs, self._sessions = model, needs, sessions
        self._prefixes = prefixes
        self._slots, self._context, self._chunk = slots, context, chunk
        self._records = min(model.num_layers * model.num_experts, needs.slots.stop - 1)
        self._pitch = slot_pitch(pack)
        self._process, self._starting = needs.process
        self._trunk = needs.trunk
        self._budget = self._within_device(budget)

    def plan(self) -> MemoryPlan:
        """The plan, or a refusal."""
        context = self._context or self._chosen_context()
        chunk = min(self._chunk or self._chosen_chunk(context), context)
        room = (self._budget.size - self._before_slots(context, chunk)) // self._pitch
        if room < self._least_slots or self._budget.size < self._starting:
            raise UsageError(self._refusal())
        return MemoryPlan(
            budget=self._budget.size,
            process=self._process,
            trunk=self._trunk,
            state=self._state(context),
            prefixes=self._prefixes,
            scratch=self._needs.scratch(chunk),
            slots=min(self._records, self._slots or room),
            slot_bytes=self._pitch,
            context=context,
            chunk=chunk,
            reason=self._budget.reason,
        )

    @property
    def _least_slots(self) -> int:
        return min(self._records, self._slots or self._needs.slots.start)

    @property
    def _good_slots(self) -> int:
        """One layer of one token, unless a number was asked for."""
        return min(self._records, self._slots or self._model.num_experts_per_tok)

    @property
    def _most(self) -> int | None:
        """Of a budget, where a device has a limit of its own."""
        return None if self._needs.most is None else self._process + self._needs.most

    def _within_device(self, budget: Budget) -> Budget:
        """The budget, or the device's limit if that is less."""
        if self._most is None or budget.size <= self._most:
            return budget
        limit = f"the GPU's working set of {megabytes(self._needs.most or 0)}, and the process"
        return Budget(self._most, limit)

    def _before_slots(self, context: int, chunk: int) -> int:
        """All parts but the slots, whose first one may lie up to a huge page into its memory."""
        fixed = self._process + self._trunk + self._prefixes + HUGE_PAGE
        return fixed + self._state(context) + self._needs.scratch(chunk)

    def _state(self, context: int) -> int:
        return self._sessions * self._needs.state(context)

    def _chosen_context(self) -> int:
        most = min(self._model.max_position_embeddings, DEFAULT_CONTEXT)
        room = self._budget.size - self._process - self._trunk - self._prefixes

        def fits(context: int) -> bool:
            state, chunk = self._state(context), min(context, self._chunk or LEAST_CHUNK)
            return state <= room // PART_OF_ROOM and self._leaves_good_slots(context, chunk)

        return _halved(most, LEAST_CONTEXT, fits)

    def _chosen_chunk(self, context: int) -> int:
        room = self._budget.size - self._process - self._trunk - self._prefixes - self._state(context)

        def fits(chunk: int) -> bool:
            scratch = self._needs.scratch(chunk)
            return scratch <= room // PART_OF_ROOM and self._leaves_good_slots(context, chunk)

        return _halved(min(DEFAULT_CHUNK, context), LEAST_CHUNK, fits)

    def _leaves_good_slots(self, context: int, chunk: int) -> bool:
        return self._before_slots(context, chunk) + self._good_slots * self._pitch <= self._budget.size

    def _refusal(self) -> str:
        """What would work instead: a larger budget, or a smaller context if one was asked for."""
        context = self._context or min(self._model.max_position_embeddings, LEAST_CONTEXT)
        chunk = min(self._chunk or LEAST_CHUNK, context)
        smallest = max(self._starting, self._before_slots(context, chunk) + self._least_slots * self._pitch)
        pasteable = -(-smallest // MESSAGE_STEP) * MESSAGE_STEP
        why = f"which is for a context of {context} tokens and chunks of {chunk}{self._shorter(context, chunk)}"
        if self._most is not None and smallest > self._most:
            return (
                f"{smallest / 1e9:.3f}GB are needed, {why}; this GPU's working set, with the process's own part, allows"
                f" {self._most / 1e9:.3f}GB: run with --backend cpu"
            )
        few = f"{self._budget.size / 1e9:.3f}GB of memory are too few"
        return f"{few}: give --memory {pasteable / 1e9:.3f}GB or more, {why}"

    def _shorter(self, context: int, chunk: int) -> str:
        """The context that fits the budget as it is, if it is worth naming."""
        over = self._before_slots(context, chunk) + self._least_slots * self._pitch - self._budget.size
        fitting = context - -(-over // max(1, self._sessions * position_bytes(self._model)))
        worth = self._context is not None and chunk <= fitting < context
        return f", or --context {fitting}" if worth else ""


def _halved(most: int, least: int, fits: Callable[[int], bool]) -> int:
    """`most`, halved until it fits, but not below `least`."""
    while most > least and not fits(most):
        most = max(least, most // 2)
    return most


def process_bytes(pack: Pack) -> tuple[int, int]:
    """What the process holds besides the model while it runs, and what it needs at most before the trunk is read."""
    tokenizer = pack.path / "tokenizer.json"
    size = tokenizer.stat().st_size if tokenizer.exists() else 0
    return PROCESS_BYTES + TOKENIZER_KEPT * size, PROCESS_BYTES + TOKENIZER_READING * size


def state_bytes(model: schema.Model, context: int) -> int:
    """A session's recurrent states, and its key/value caches for the whole context."""
    return recurrent_bytes(model) + context * position_bytes(model)


def scratch_bytes(model: schema.Model, chunk: int, span: int = SPAN) -> int:
    """Activations at their peak, while `chunk` tokens go through a layer, `span` of them at a time through its mixer.

    In the mixer: the residual stream and a norm of the whole chunk; of a span its norm, its result and the widest
    mixer's projections, and rounded norm and result. Among the experts: residual stream, norm, sum and one
    spare of the whole chunk, its routes (ids and weights, also sorted), the widest of router, routed and shared expert,
    since all tokens may choose one, the norm rounded as experts want it for one or two tokens and for more, and as the
    shared expert does, and what lies between projections rounded. (A recipe that gives projections of experts unlike
    formats rounds once more.) Besides, what experts give to each of a few tokens that decode together, and the logits
    of the last token, with sampling's copies.
    """
    hidden, inner, spanned = model.hidden_size, _expert_width(model), min(span, chunk)
    attention, delta = model.full_attention, model.linear_attention
    widest = max(_attention_width(attention), _delta_width(delta))
    out = max(attention.num_heads * attention.head_dim, delta.num_value_heads * delta.value_head_dim)
    mixing = FLOAT_BYTES * (2 * chunk * hidden + spanned * (2 * hidden + widest))
    mixing += spanned * (_rounded_bytes(hidden) + _rounded_bytes(out)) + _mixer_bytes(delta, spanned)
    expert = FLOAT_BYTES * chunk * (4 * hidden + inner + ROUTE_FLOATS * model.num_experts_per_tok)
    expert += chunk * (3 * _rounded_bytes(hidden) + _rounded_bytes(inner))
    pairs = min(FEW_TOKENS, chunk) * model.num_experts_per_tok
    few = pairs * (
        FLOAT_BYTES * (hidden + model.moe_intermediate_size) + 2 * _rounded_bytes(model.moe_intermediate_size)
    )
    return max(mixing, expert) + few + FLOAT_BYTES * SAMPLING_COPIES * model.vocab_size


def _rounded_bytes(width: int) -> int:
    """A row rounded to fifteen bits (kernels/cpu/kernels.h): whole stretches of two bytes, five floats per block."""
    padded = -(-width // STRETCH) * STRETCH
    return 2 * padded + 5 * FLOAT_BYTES * padded // BLOCK


def _attention_width(shape: schema.FullAttention) -> int:
    """Floats per token: queries and gates as projected, the output; keys and values."""
    return 3 * shape.num_heads * shape.head_dim + 2 * shape.num_kv_heads * shape.head_dim


def _delta_width(shape: schema.LinearAttention) -> int:
    """Floats per token: channels before the convolution; gate and output; two numbers per head."""
    return delta_channels(shape) + 2 * shape.num_value_heads * (shape.value_head_dim + 1)


def _mixer_bytes(shape: schema.LinearAttention, tokens: int) -> int:
    """What mixers hold while they run: attention its partial sums, the delta rule some convolved tokens."""
    return max(PARTIAL_BYTES, FLOAT_BYTES * min(tokens, CONVOLVED_TOKENS) * delta_channels(shape))


def _expert_width(model: schema.Model) -> int:
    """Floats per token: the router's logits, or what lies between an expert's projections."""
    return max(model.num_experts, model.moe_intermediate_size, model.shared_expert_intermediate_size)


def default_budget() -> Budget:
    """A share of the memory that is available now, to this process's control group too.

    On macOS the share is of all memory: the system has no figure for what could be made available.
    """
    system, group = host.memory_free(), min(_group_available(), default=None)
    limited = group is not None and group < system
    free = group if group is not None and limited else system
    whose = "left to this control group" if limited else "in this machine" if sys.platform == "darwin" else "free"
    return Budget(int(SHARE_OF_AVAILABLE * free), f"3/4 of the {megabytes(free)} that are {whose}")


def _group_available(proc: Path = Path("/proc"), mount: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What is left to each control group that this process is in, up to the root; nothing where there is no limit.

    Both generations: "0::/a/b" is a path below the mount, "7:memory:/a/b" one below its `memory` folder. Paths that are
    not mounted here (a container may see only its own part) are passed over.
    """
    groups = proc / "self" / "cgroup"
    lines = groups.read_text().splitlines() if groups.exists() else []
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers:
            folders = _upwards(mount, path)
            found += [_left(folder, "memory.max", "memory.current", "") for folder in folders]
        elif "memory" in controllers.split(","):
            folders = _upwards(mount / "memory", path)
            found += [_left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_") for folder in folders]
    return [left for left in found if left is not None]


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The folder of `path` below `root`, and those above it up to `root` itself."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return (root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _left(folder: Path, limit: str, used: str, prefix: str) -> int | None:
    """A group's limit less what it uses, its page cache not counted: the system takes that back when needed."""
    texts = [(folder / name).read_text().strip() for name in (limit, used) if (folder / name).exists()]
    if len(texts) < 2 or not all(text.isdigit() for text in texts):
        return None
    most, current = map(int, texts)
    return max(0, most - max(0, current - _page_cache(folder / "memory.stat", prefix)))


def _page_cache(statistics: Path, prefix: str) -> int:
    lines = statistics.read_text().splitlines() if statistics.exists() else []
    fields = dict(line.split(maxsplit=1) for line in lines)
    return sum(int(fields.get(f"{prefix}{name}", 0)) for name in ("inactive_file", "active_file"))
