"""What was asked of a GPU: counts, never times. A backend counts where it asks, always, by adding to integers.

No counter needs a lock: each has one thread at a time that adds to it, and what several threads do is counted by
thread. Knows no device.
"""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Tally:
    """Counts since a device was opened, or what one such moment has more than another.

    `gpu_waits`: the GPU goes on once the host has raised an event, as `gpu_signals` is the other way round.
    `host_signals` and `host_waits` are by the host's threads; a wait that is given up to look around and begun again
    counts each time. `made`: objects that Metal's `new...` methods gave, by kind.
    """

    command_buffers: int = 0  # committed
    sections: int = 0
    kernels: int = 0
    gpu_signals: int = 0
    gpu_waits: int = 0
    host_signals: Counter[str] = field(default_factory=Counter)
    host_waits: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)

    def host_signalled(self) -> None:
        """This thread raised an event."""
        self.host_signals[threading.current_thread().name] += 1

    def host_waited(self) -> None:
        """This thread waits for the GPU."""
        self.host_waits[threading.current_thread().name] += 1

    def copy(self) -> "Tally":
        """The counts as they stand."""
        return self + Tally()

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})

    def __sub__(self, earlier: "Tally") -> "Tally":
        return Tally(**{each.name: getattr(self, each.name) - getattr(earlier, each.name) for each in fields(self)})

    def per(self, number: int) -> Mapping[str, Any]:
        """All counts divided by a number of tokens."""
        return {each.name: _divided(getattr(self, each.name), number) for each in fields(self)}


def _divided(count: int | Counter[str], number: int) -> float | dict[str, float]:
    if isinstance(count, int):
        return count / number
    return {name: each / number for name, each in count.items()}
