"""A stopwatch with one hand per stage of a layer: what a run's time went to.

Time runs on the stage named last. It measures the caller's side: on a backend that only enqueues work, enqueueing
and waiting.
"""

import time
from typing import Literal, TypeAlias

from .trace import UNTRACED, Recorder

Stage: TypeAlias = Literal["mixer", "router", "reads", "experts", "shared", "head"]


class Stages:
    """Seconds by stage since it was made; `trace` hears of every stretch."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.trace: Recorder = UNTRACED
        self._stage: Stage | None = None
        self._since = 0.0

    def turn(self, stage: Stage | None) -> None:
        """From now on time is `stage`'s; None stops the watch."""
        now = time.perf_counter()
        if self._stage is not None:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
            self.trace.slice(self._stage, self._since, now)
        self._stage, self._since = stage, now
