"""Filling: records that nobody asked for are read into slots that hold none yet, while there is nothing to compute.

Who asks first then finds them. Every record is tried once, those of all layers in turn, for a pass through the model
wants some of each. Heat has nothing to say: as long as slots are free nothing makes room, so what was used is there.
Only free slots are taken, and what was read here is the first to go later. Knows nothing of what comes of its reads.
"""

from collections.abc import Iterator

from ...layout.reader import Pack
from .arrivals import Arrivals
from .cache import Cache, Key

FILLED_BYTES = 32 * 1000 * 1000  # at once: who comes meanwhile waits for these, 12 ms at 2.6 GB/s
MOST_FILLED = 64  # records at once: small ones cost time too


class Filling:
    """Starts reads of what is missing, a few at a time."""

    def __init__(self, pack: Pack, cache: Cache, arrivals: Arrivals) -> None:
        self._cache, self._arrivals = cache, arrivals
        layers, experts = range(pack.model.num_layers), range(pack.model.num_experts)
        self._rest: Iterator[Key] = ((layer, expert) for expert in experts for layer in layers)
        self._at_once = max(1, min(MOST_FILLED, FILLED_BYTES // max(record.stride for record in pack.records)))

    def start(self) -> set[Key]:
        """Start the next few reads; none if no slot is free or every record has been tried."""
        started = set[Key]()
        while self._cache.free and len(started) < self._at_once and (key := self._missing()) is not None:
            self._arrivals.start([key], [self._cache.free.pop()], urgent=False)
            started.add(key)
        return started

    def _missing(self) -> Key | None:
        return next((key for key in self._rest if key not in self._cache.records and key not in self._arrivals), None)
