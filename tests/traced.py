"""Traces as tests read them: their slices, which nest, and the file of them."""

import json
from collections.abc import Iterator
from pathlib import Path

from moepack.runtime.trace import Slice


def by_track(slices: list[Slice]) -> Iterator[tuple[str, list[Slice]]]:
    """Each track's slices, outer before inner ones."""
    for track in dict.fromkeys(each.track for each in slices):
        yield track, sorted((s for s in slices if s.track == track), key=lambda s: (s.start, -s.end))


def check_nesting(slices: list[Slice]) -> None:
    """No slice of a track ends within another that began before it."""
    for _, ordered in by_track(slices):
        around: list[Slice] = []
        for each in ordered:
            while around and around[-1].end <= each.start:
                around.pop()
            assert each.start <= each.end
            assert not around or each.end <= around[-1].end, (around[-1], each)
            around.append(each)


def within(inner: Slice, outers: list[Slice]) -> bool:
    return any(outer.start <= inner.start and inner.end <= outer.end for outer in outers)


def slices_of(file: Path) -> list[Slice]:
    """What a viewer would see of a trace file."""
    content = json.loads(file.read_text())
    tracks = {e["tid"]: e["args"]["name"] for e in content["traceEvents"] if e["name"] == "thread_name"}
    events = [event for event in content["traceEvents"] if event["ph"] == "X"]
    assert {event["ph"] for event in content["traceEvents"]} == {"X", "M"}
    assert {event["pid"] for event in content["traceEvents"]} == {1}
    assert min(event["ts"] for event in events) == 0
    return [
        Slice(tracks[e["tid"]], e["name"], start := round(1e3 * e["ts"]), start + round(1e3 * e["dur"]), e["args"])
        for e in events
    ]
