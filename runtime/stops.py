"""Stop strings in streamed text: found even when tokens cut them anywhere, and never partly printed."""

from collections.abc import Sequence

from ..manifests.errors import UsageError


class StopStrings:
    """Passes text through until one of `stops` is complete; text that may begin one is held back.

    The stop string that is complete first wins, whatever pieces the text comes in.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        check_stops(stops)
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that is now known to come before any stop string; all of it until `found`."""
        self._held += text
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            _, start, self.found = min(ends)
            return self._release(start, keep=False)
        return self._release(len(self._held) - self._possible_start(), keep=True)

    def finish(self) -> str:
        """The text held back, when no more will come."""
        return self._release(len(self._held), keep=False)

    def _release(self, size: int, *, keep: bool) -> str:
        piece, rest = self._held[:size], self._held[size:]
        self._held = rest if keep else ""
        return piece

    def _possible_start(self) -> int:
        """How many of the last characters are the beginning of some stop string."""
        longest = min(len(self._held), max((len(stop) - 1 for stop in self._stops), default=0))
        return next((size for size in range(longest, 0, -1) if self._begins_stop(self._held[-size:])), 0)

    def _begins_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)


def check_stops(stops: Sequence[str]) -> None:
    """Raises UsageError for an empty stop string."""
    if "" in stops:
        raise UsageError("a stop string is empty; every text would end at once")
