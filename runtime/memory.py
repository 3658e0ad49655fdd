"""The memory plan: what a run needs besides experts, and how many expert slots the rest of the budget holds.

The budget is for the whole process. It is a promise: what does not fit is refused before anything is allocated.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..layout.reader import Pack
from ..manifests import schema
from ..manifests.errors import UsageError
from .state import FLOAT_BYTES, delta_channels, position_bytes, recurrent_bytes
from .streaming.slots import HUGE_PAGE, slot_pitch

PROCESS_BYTES = 128 * 1024 * 1024  # the interpreter and libraries
TOKENIZER_COPIES = 9  # measured: the peak of reading a tokenizer.json, in sizes of that file
MESSAGE_STEP = 1_000_000  # budgets in messages are whole MB, written as GB
SHARE_OF_AVAILABLE = 0.75  # of the memory that is free now; the rest is for others and the page cache
DEFAULT_CONTEXT = 32768


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of each part, for `context` positions and `slots` expert slots; their sum is at most `budget`."""

    budget: int
    process: int
    trunk: int
    state: int
    scratch: int
    slots: int
    slot_bytes: int
    context: int

    @property
    def total(self) -> int:
        """All parts together."""
        return self.process + self.trunk + self.state + self.scratch + self.slots * self.slot_bytes

    def parts(self) -> dict[str, int]:
        """Bytes by part, as shown to the user."""
        experts = self.slots * self.slot_bytes
        fixed = {"process": self.process, "trunk": self.trunk, "state": self.state, "scratch": self.scratch}
        return {**fixed, "experts": experts}


def plan(pack: Pack, *, memory: int | None, slots: int | None, context: int | None, chunk: int) -> MemoryPlan:
    """Divide `memory` bytes (by default a share of what is available). `slots` fixes the number of expert slots.

    Raises UsageError, naming the smallest budget that works, if the parts do not fit, and for a context or number of
    slots outside the model's range.
    """
    model = pack.model
    positions = _context(model, context)
    budget = available_memory() if memory is None else memory
    state = recurrent_bytes(model) + positions * position_bytes(model)
    scratch = scratch_bytes(model, chunk)
    fixed = MemoryPlan(budget, _process(pack), pack.trunk.size, state, scratch, 0, slot_pitch(pack), positions)
    return _with_slots(fixed, slots, model.num_layers * model.num_experts, chunk)


def _process(pack: Pack) -> int:
    tokenizer = pack.path / "tokenizer.json"
    return PROCESS_BYTES + (TOKENIZER_COPIES * tokenizer.stat().st_size if tokenizer.exists() else 0)


def _context(model: schema.Model, context: int | None) -> int:
    if context is None:
        return min(model.max_position_embeddings, DEFAULT_CONTEXT)
    if not 1 <= context <= model.max_position_embeddings:
        raise UsageError(f"a context of {context} tokens is outside the model's 1 to {model.max_position_embeddings}")
    return context


def _with_slots(fixed: MemoryPlan, wanted: int | None, most: int, chunk: int) -> MemoryPlan:
    if wanted is not None and wanted < 1:
        raise UsageError(f"{wanted} expert slots are too few; streaming needs at least 1")
    room = (fixed.budget - fixed.total - HUGE_PAGE) // fixed.slot_bytes
    slots = min(room, most) if wanted is None else min(wanted, most)
    if slots < 1 or slots > room:
        smallest = fixed.total + HUGE_PAGE + max(1, min(wanted or 1, most)) * fixed.slot_bytes
        pasteable = -(-smallest // MESSAGE_STEP) * MESSAGE_STEP
        raise UsageError(
            f"{fixed.budget / 1e9:.3f}GB of memory are too few: give --memory {pasteable / 1e9:.3f}GB or more, which is"
            f" for a context of {fixed.context} tokens and chunks of {chunk}; smaller ones need less"
        )
    return MemoryPlan(**{**vars(fixed), "slots": slots})


def scratch_bytes(model: schema.Model, chunk: int) -> int:
    """Activations of one chunk: per token the residual stream and the widest layer's projections; and logits."""
    full, linear = model.full_attention, model.linear_attention
    attention = 4 * full.num_heads * full.head_dim + 2 * full.num_kv_heads * full.head_dim
    delta = 2 * delta_channels(linear) + 2 * linear.num_value_heads * (linear.value_head_dim + 1)
    experts = 2 * model.moe_intermediate_size + model.shared_expert_intermediate_size + model.num_experts
    widest = max(attention, delta, experts)
    return FLOAT_BYTES * (chunk * (6 * model.hidden_size + widest) + 2 * model.vocab_size)


def available_memory() -> int:
    """The default budget: a share of the memory that is available now, to this process's control group too.

    On macOS the share is of all memory: the system has no figure for what could be made available.
    """
    return int(SHARE_OF_AVAILABLE * min([_system_available(), *_group_available()]))


def _system_available() -> int:
    if sys.platform == "darwin":
        return int(subprocess.run(["sysctl", "-n", "hw.memsize"], capture_output=True, text=True, check=True).stdout)
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


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
