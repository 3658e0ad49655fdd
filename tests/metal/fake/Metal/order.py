"""Which work is known to come before which: hazards, and what the host may touch.

A pass (what one encoder encodes) has a bit; a set of passes is an integer. A pass knows what came before it by events,
by fences, by the host's knowledge when it was committed, and by Metal's own tracking of buffers, which reaches over one
queue and only over tracked buffers. Two passes that conflict, and of which neither knows the other, are a hazard in
whatever order they ran. All calls are made under the lock of the GPU.
"""

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .faults import reports

if TYPE_CHECKING:
    from .memory import Region, Wrapped
    from .work import Pass


class Holder(Protocol):
    """An event, a fence, a queue or a command buffer."""

    def _forget_passes(self) -> None: ...


class Access(NamedTuple):
    """A pass's use of a buffer."""

    work: "Pass"
    writes: bool


@dataclass(eq=False)
class Resource:
    """A buffer as it matters here. It outlives the buffer where a command buffer does not retain it."""

    memory: "weakref.ref[Region | Wrapped]"
    tracked: bool
    name: str = "(without a label)"
    accesses: list[Access] = field(default_factory=list)
    writers: int = 0  # passes that may run now and write, and of whose end the host does not know


class Order:
    """What the host knows, and what is under way."""

    def __init__(self) -> None:
        self.host = 0
        self._passes: list[Pass] = []
        self._closed: set[Resource] = set()
        self._accessed: set[Resource] = set()
        self._holders: weakref.WeakSet[Holder] = weakref.WeakSet()

    def hold(self, holder: "Holder") -> None:
        """`holder` keeps sets of passes, which lose their meaning when this forgets."""
        self._holders.add(holder)

    def enter(self, work: "Pass") -> None:
        """A pass is committed."""
        work.bit = 1 << len(self._passes)
        self._passes.append(work)

    def in_flight(self, work: "Pass") -> None:
        """From now on the pass may run without anything further from the host, which has to keep off what it writes."""
        for resource in work.writes:
            resource.writers |= work.bit
            self._closed.add(resource)
            if memory := resource.memory():
                memory.close()

    def begin(self, work: "Pass", known: int) -> None:
        """The pass runs, knowing the passes `known`; say with which others it conflicts."""
        work.clock = known
        conflicts = [pair for resource in work.resources for pair in _conflicts(resource, work)]
        for resource, other in conflicts:
            if resource.tracked and other.queue is work.queue:
                work.clock |= other.bit | other.clock
        for resource, other in conflicts:
            if not work.clock & other.bit:
                reports.add("hazard", _hazard(resource, other, work))
        for resource in work.resources:
            self._remember(resource, work)

    def learn(self, passes: int) -> None:
        """The host knows that these passes have ended."""
        self.host |= passes
        self.look()
        for resource in list(self._closed):
            resource.writers &= ~self.host
            if not resource.writers:
                self._reopen(resource)

    def look(self) -> None:
        """Report what the host touched too early."""
        for resource in self._closed:
            memory = resource.memory()
            if memory is not None and memory.touched():
                reports.add("host access", _early(resource, self._names(resource.writers)))

    def forget_if_known(self) -> None:
        """Start with fresh bits: nothing is under way, and the host knows all of the past."""
        if self._passes and self.host == (1 << len(self._passes)) - 1:
            self.forget()

    def forget(self) -> None:
        for resource in list(self._closed):
            self._reopen(resource)
        for resource in self._accessed:
            resource.accesses.clear()
        for holder in self._holders:
            holder._forget_passes()
        self.host, self._passes, self._accessed = 0, [], set()

    def _reopen(self, resource: Resource) -> None:
        self._closed.discard(resource)
        resource.writers = 0
        if memory := resource.memory():
            memory.open()

    def _remember(self, resource: Resource, work: "Pass") -> None:
        writes = resource in work.writes
        if writes:
            resource.accesses = [a for a in resource.accesses if not work.clock & a.work.bit]
        resource.accesses.append(Access(work, writes))
        self._accessed.add(resource)

    def _names(self, passes: int) -> str:
        return " and ".join(work.name for work in self._passes if work.bit & passes)


def _conflicts(resource: Resource, work: "Pass") -> list[tuple[Resource, "Pass"]]:
    writes = resource in work.writes
    return [(resource, a.work) for a in resource.accesses if (a.writes or writes) and not work.clock & a.work.bit]


def _hazard(resource: Resource, first: "Pass", second: "Pass") -> str:
    why = "is not tracked by Metal" if not resource.tracked else "is tracked within one queue only, and they are of two"
    return (
        f"{second.name} and {first.name} use buffer {resource.name}, at least one writes it, it {why}, "
        "and neither a fence nor an event orders them"
    )


def _early(resource: Resource, writers: str) -> str:
    return f"the host touched buffer {resource.name} while it did not know that {writers}, which writes it, had ended"
