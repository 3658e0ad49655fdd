"""What `moe-run bench --trace` adds: a trace of the warm answers, and what a token of them asked of the GPU.

Idle time cannot be seen from the host: what it took to answer the routers is measured instead, by the thread that
answers, from its waking to its raising of the event. GPU times are those that Metal reports; moepack's authors have
only met those of a stand-in, which are a CPU's.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..layout.atomic import replace
from ..manifests.errors import StorageError, UsageError
from .engine import Engine
from .tally import Tally
from .trace import ANSWER, ON_GPU, TOKEN, UNTRACED, Recorder, Trace

ABOUT_TIMES = (
    "Slices are measured on the host. GPU slices are what Metal reports as a command buffer's start and end, which"
    " includes its waiting for the host; their clock is taken to be the host's. moepack's authors have run nothing on"
    " Apple hardware, and under a stand-in for Metal they are a CPU's times."
)


@dataclass(frozen=True)
class Costs:
    """What a decoded token cost: means over `tokens` of them. `asked` is a Tally's counts, `allocations` its `made`.

    `dependencies`: times that the GPU goes on only once the host has answered. `answer_milliseconds`: what the host
    took for them. None where no GPU was asked for anything.
    """

    tokens: int
    milliseconds: float
    asked: Mapping[str, Any]
    dependencies: float
    dependencies_per_layer: float
    allocations: float
    answer_milliseconds: float | None
    gpu_milliseconds: float | None

    @classmethod
    def of(cls, trace: Trace, asked: Tally, layers: int) -> "Costs":
        """Those of the tokens of a trace, of which there is at least one."""
        tokens = len(trace.named(TOKEN))
        dependencies = asked.gpu_waits / tokens
        return cls(
            tokens,
            _sum(trace, TOKEN) / tokens,
            asked.per(tokens),
            dependencies,
            dependencies / layers,
            asked.made.total() / tokens,
            *(_sum(trace, name) / tokens if asked.command_buffers else None for name in (ANSWER, ON_GPU)),
        )


class Unwatched:
    """Nobody asked for a trace."""

    costs = None

    def answer(self, engine: object) -> AbstractContextManager[Recorder]:
        """See bench.Watching."""
        return nullcontext(UNTRACED)

    def write(self) -> None:
        """There is nothing to write."""


UNWATCHED = Unwatched()


class Watch:
    """Watches answers, and writes their trace to a file. Raises UsageError or StorageError if it cannot be there."""

    def __init__(self, path: Path) -> None:
        _check(path)
        self.path = path
        self._trace = Trace()
        self._asked = Tally()
        self._layers = 0
        self._about: dict[str, object] = {"times": ABOUT_TIMES}

    @contextmanager
    def answer(self, engine: Engine) -> Iterator[Recorder]:
        """See bench.Watching."""
        self._layers = engine.model.num_layers
        self._about |= {"backend": engine.backend.name, "experts_per_token": engine.experts_per_token}
        before = engine.backend.tally.copy()
        engine.record(self._trace)
        try:
            yield self._trace
        finally:
            engine.record(UNTRACED)
            self._asked += engine.backend.tally - before

    @property
    def costs(self) -> Costs:
        """Of the answers so far."""
        return Costs.of(self._trace, self._asked, self._layers)

    def write(self) -> None:
        """Publish the trace, whole or not at all. Raises StorageError if the disk refuses."""
        content = json.dumps(self._trace.document("moe-run bench", self._about)).encode()
        replace(self.path, content)


def _check(path: Path) -> None:
    """Before anything is measured."""
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder to write into; make it or choose another place for the trace")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is there and is no file; name another for the trace")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise StorageError(f"{path.parent} may not be written into; choose another place for the trace")


def _sum(trace: Trace, name: str) -> float:
    return sum(each.milliseconds for each in trace.named(name))
