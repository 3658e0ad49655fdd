"""Where a run's time went, slice by slice, in the format that Perfetto (ui.perfetto.dev) and chrome://tracing read.

Who has something to tell tells a recorder: `UNTRACED` unless somebody asked. Slices of one track nest, or lie one
after the other. Times are those of time.perf_counter, in seconds.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

# What is told, besides the stages of a layer.
TOKEN = "token"
WAITING = "waiting for the GPU"  # the token's own thread, at its end
ON_GPU = "command buffer"  # from start to end, waiting for the host included
AWAITED = "waiting for the router"
ANSWER = "answer"  # from hearing of the router's choice to letting the GPU go on: of these two it consists
RESIDENT = "experts into memory"
PLACES = "slot table"


class Recorder(Protocol):
    """Hears where time went, from any thread."""

    def slice(self, name: str, start: float, end: float, *, track: str | None = None, **facts: int) -> None:
        """From `start` to `end` this thread, or another `track`, did what `name` says."""


class Untraced:
    """Nobody asked."""

    def slice(self, name: str, start: float, end: float, *, track: str | None = None, **facts: int) -> None:
        """Forget it."""


UNTRACED = Untraced()


@dataclass(frozen=True)
class Slice:
    """One of them; in nanoseconds, so that differences are exact."""

    track: str
    name: str
    start: int
    end: int
    facts: Mapping[str, int] = field(default_factory=dict)

    @property
    def milliseconds(self) -> float:
        """How long it took."""
        return (self.end - self.start) / 1e6


class Trace:
    """Keeps all slices."""

    def __init__(self) -> None:
        self.slices: list[Slice] = []  # appending is atomic

    def slice(self, name: str, start: float, end: float, *, track: str | None = None, **facts: int) -> None:
        """See Recorder."""
        where = track or threading.current_thread().name
        self.slices.append(Slice(where, name, round(1e9 * start), round(1e9 * end), facts))

    def named(self, name: str) -> list[Slice]:
        """Those of one name."""
        return [each for each in self.slices if each.name == name]

    def document(self, process: str, about: Mapping[str, object]) -> dict[str, Any]:
        """The trace as JSON's types: outer slices before inner ones, microseconds from the first on."""
        slices = sorted(self.slices, key=lambda each: (each.start, -each.end))
        tracks = {name: number for number, name in enumerate(dict.fromkeys(each.track for each in slices), 1)}
        names = [_named("process_name", process), *(_named("thread_name", *track) for track in tracks.items())]
        zero = min((each.start for each in slices), default=0)
        events = [_event(each, tracks[each.track], zero) for each in slices]
        return {"traceEvents": [*names, *events], "displayTimeUnit": "ms", "otherData": dict(about)}


def _named(what: str, name: str, track: int = 0) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": 1, "tid": track, "args": {"name": name}}


def _event(each: Slice, track: int, zero: int) -> dict[str, Any]:
    times = {"ts": (each.start - zero) / 1e3, "dur": (each.end - each.start) / 1e3}
    return {"ph": "X", "name": each.name, "cat": each.track, "pid": 1, "tid": track, **times, "args": dict(each.facts)}
