"""What was done, counted: counts that tests assert, and the order in which the GPU did it.

These are counts and an order, never times: nothing here says how fast anything would be on a GPU.
"""

import threading
from collections import Counter
from dataclasses import dataclass, field, fields


@dataclass
class Allocation:
    """An object of a `new...` method. The label is the one that it had last."""

    kind: str
    bytes: int = 0
    label: str | None = None


@dataclass(frozen=True)
class Counters:
    """Counts since the start; subtract an earlier one for those of a token."""

    command_buffers: int = 0  # committed
    passes: int = 0  # encoders ended
    dispatches: int = 0
    barriers: int = 0
    gpu_signals: int = 0
    gpu_waits: int = 0  # for an event, whether or not it had come already
    idle: int = 0  # times that the GPU had work, and all of it waited for an event that had not come
    host_signals: int = 0
    host_waits: Counter[str] = field(default_factory=Counter)  # per thread
    allocated: tuple[Allocation, ...] = ()

    def __sub__(self, earlier: "Counters") -> "Counters":
        numbers = {
            f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self) if f.name != "allocated"
        }
        return Counters(**numbers, allocated=self.allocated[len(earlier.allocated) :])

    @property
    def bytes_allocated(self) -> int:
        return sum(allocation.bytes for allocation in self.allocated)

    @property
    def allocations(self) -> Counter[str]:
        """How many objects were made, per kind and label."""
        return Counter(f"{a.kind} {a.label or 'without a label'}" for a in self.allocated)


@dataclass(frozen=True)
class Step:
    """One thing that the GPU did: `kind` is pass, signal, wait, idle or completed."""

    kind: str
    command_buffer: str
    name: str
    value: int = 0


class Account:
    """Where everything is counted, from whichever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        with self._lock:
            self._counts, self._waits = Counter[str](), Counter[str]()
            self._allocated, self._steps = list[Allocation](), list[Step]()

    def count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def host_waited(self) -> None:
        with self._lock:
            self._waits[threading.current_thread().name] += 1

    def allocated(self, kind: str, size: int = 0) -> Allocation:
        allocation = Allocation(kind, size)
        with self._lock:
            self._allocated.append(allocation)
        return allocation

    def step(self, step: Step) -> None:
        with self._lock:
            self._steps.append(step)

    def counters(self) -> Counters:
        with self._lock:
            return Counters(**self._counts, host_waits=self._waits.copy(), allocated=tuple(self._allocated))

    def trace(self) -> list[Step]:
        with self._lock:
            return list(self._steps)


account = Account()
