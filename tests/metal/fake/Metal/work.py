"""What a committed command buffer consists of: passes of commands, signals and waits."""

import ctypes
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from . import settings
from .faults import CommandFailed, reports
from .order import Resource

if TYPE_CHECKING:
    from .command_buffer import MTLCommandBuffer, MTLCommandQueue
    from .event import MTLEvent, MTLFence
    from .library import MTLComputePipelineState

PAGE_FAULT = 3
INTERNAL = 1


@dataclass(frozen=True)
class Bound:
    """Memory bound to an argument: `length` bytes from `address`; `held` is the buffer, or None once it is gone."""

    address: int
    length: int
    held: Callable[[], Any]
    resource: Resource | None = None

    def check(self) -> None:
        """A command is about to use this memory."""
        buffer = self.held()
        if buffer is None or (self.resource is not None and buffer._memory.released()):
            what = "buffer" if buffer is None else "the host's memory in buffer"
            name = self.resource.name if self.resource else ""
            sentence = f"{what} {name} was released while a command buffer still uses it"
            reports.add("released memory", sentence)
            raise CommandFailed(sentence, PAGE_FAULT)


class Command(Protocol):
    """A dispatch or a copy."""

    name: str
    reads: frozenset[Resource]
    writes: frozenset[Resource]

    def run(self) -> None:
        """Do it. CommandFailed if the command buffer cannot go on."""


def resources(bounds: Iterator[Bound]) -> frozenset[Resource]:
    return frozenset(bound.resource for bound in bounds if bound.resource is not None)


@dataclass(frozen=True)
class Dispatch:
    """One launch of a kernel."""

    pipeline: "MTLComputePipelineState"
    grid: Any
    arguments: dict[int, Bound]
    lengths: dict[int, int]

    @property
    def name(self) -> str:
        return self.pipeline._kernel

    @cached_property
    def reads(self) -> frozenset[Resource]:
        return resources(self.arguments[a.index] for a in self.pipeline._buffers if not a.writable)

    @cached_property
    def writes(self) -> frozenset[Resource]:
        return resources(self.arguments[a.index] for a in self.pipeline._buffers if a.writable)

    def run(self) -> None:
        for bound in self.arguments.values():
            bound.check()
        found = self.pipeline._launch(self.grid, self.arguments, self.lengths)
        for sentence in found:
            reports.add("kernel", sentence)
        if found:
            raise CommandFailed(found[0], PAGE_FAULT)


@dataclass(frozen=True)
class Copy:
    """`length` bytes, of a blit encoder."""

    source: Bound
    target: Bound
    length: int
    name: str = "copy"

    @cached_property
    def reads(self) -> frozenset[Resource]:
        return resources(iter([self.source]))

    @cached_property
    def writes(self) -> frozenset[Resource]:
        return resources(iter([self.target]))

    def run(self) -> None:
        self.source.check()
        self.target.check()
        ctypes.memmove(self.target.address, self.source.address, self.length)


@dataclass(frozen=True)
class Fill:
    """`length` bytes of one value, of a blit encoder."""

    target: Bound
    length: int
    value: int
    name: str = "fill"
    reads: frozenset[Resource] = frozenset()

    @cached_property
    def writes(self) -> frozenset[Resource]:
        return resources(iter([self.target]))

    def run(self) -> None:
        self.target.check()
        ctypes.memset(self.target.address, self.value, self.length)


@dataclass(eq=False)
class Pass:
    """What one encoder encoded. Commands of one group may run in any order; the groups run one after the other."""

    command_buffer: "MTLCommandBuffer"
    label: str | None = None
    groups: list[list[Command]] = field(default_factory=lambda: [[]])
    reads: set[Resource] = field(default_factory=set)
    writes: set[Resource] = field(default_factory=set)
    waits_for: list["MTLFence"] = field(default_factory=list)
    updates: list["MTLFence"] = field(default_factory=list)
    bit: int = 0
    clock: int = 0  # the passes it knows to have ended before it began
    done: bool = False

    def add(self, command: Command) -> None:
        self.groups[-1].append(command)
        self.reads |= command.reads
        self.writes |= command.writes

    @property
    def queue(self) -> "MTLCommandQueue":
        return self.command_buffer._queue

    @property
    def resources(self) -> set[Resource]:
        return self.reads | self.writes

    @property
    def name(self) -> str:
        kernels = "+".join(dict.fromkeys(command.name for group in self.groups for command in group))
        return f"pass '{self.label or kernels}' of command buffer {self.command_buffer._name}"

    def follows(self, earlier: "Pass") -> bool:
        """Whether Metal itself would run this one after `earlier`, of the same queue."""
        if set(self.waits_for) & set(earlier.updates):
            return True
        shared = (self.writes & earlier.resources) | (self.reads & earlier.writes)
        return any(resource.tracked for resource in shared)

    def run(self) -> None:
        for number, group in enumerate(self.groups):
            for command in shuffled(group, self.bit + number):
                self.command_buffer._spend()
                command.run()


@dataclass(eq=False)
class Signal:
    """Sets an event to `value` when everything before it in its command buffer is done."""

    command_buffer: "MTLCommandBuffer"
    event: "MTLEvent"
    value: int
    done: bool = False


@dataclass(eq=False)
class Wait:
    """Holds back what comes later in its queue until the event has `value`."""

    command_buffer: "MTLCommandBuffer"
    event: "MTLEvent"
    value: int
    known: int = 0  # the passes that are known to have ended, once it has
    done: bool = False


@dataclass(eq=False)
class End:
    """The last item of every command buffer: it completes, once those before it in its queue have."""

    command_buffer: "MTLCommandBuffer"
    done: bool = False


Item = Pass | Signal | Wait | End


def shuffled(items: list[Any], salt: int) -> list[Any]:
    """`items`, which may go in any order, in that of the settings."""
    order = settings.current().order
    if order == 0 or len(items) < 2:
        return items
    if order == 1:
        return items[::-1]
    return random.Random(f"{order} {salt}").sample(items, len(items))
