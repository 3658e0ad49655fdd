"""Decoding computes with records that are still being checked, and confirms them before anything comes of it."""

import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from slow_reader import EXPERTS, SlowReader, check_batches, check_slots, flip_bit, two_layers, until

from moepack.layout.reader import Pack
from moepack.manifests.errors import MismatchError
from moepack.runtime.experts import ExpertStream
from moepack.runtime.streaming.arrivals import Arrivals


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    with Pack.open(two_layers(tmp_path_factory.mktemp("streamed"))) as opened:
        yield opened


class Held:
    """Digests that are not told before they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = Event()
        self._judge = Arrivals._damage
        monkeypatch.setattr(Arrivals, "_damage", lambda *record: self._late(*record))

    def _late(self, *record: Any) -> MismatchError | None:
        assert self.go.wait(10)
        return self._judge(*record)


def test_decoding_does_not_wait_for_digests_before_it_confirms(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    with closing(ExpertStream(pack, 2 * EXPERTS)) as stream:
        for layer in range(2):
            assert check_batches(pack, stream, layer, [1, 4, 7], early=False, slots=2 * EXPERTS) == 3
        assert not stream._cache.records
        held.go.set()
        stream.confirm()
        assert len(stream._cache.records) == 6


def test_a_slot_is_not_given_away_before_its_record_is_checked(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the digest would be of another record's bytes, and good ones would seem damaged."""
    held = Held(monkeypatch)
    reader = SlowReader()
    with closing(reader.stream(pack, 2)) as stream:
        visit = stream.batches(0, [1, 3, 4])
        handed = [expert for _ in range(3) for expert, _ in next(visit)]
        assert (handed, len(reader.asked)) == ([1, 3], 2)
        held.go.set()
        assert [expert for batch in visit for expert, _ in batch] == [4]
        stream.confirm()


def test_digests_are_compared_while_nothing_computes(pack: Pack) -> None:
    reader = SlowReader()
    with closing(reader.stream(pack, 8)) as stream:
        for layer in range(2):  # in the second one, after somebody has waited
            visit = stream.batches(layer, [1, 4])
            next(visit)  # the caller computes
            reader.deliver()
            until(lambda: not stream._arrivals._news.empty())
            time.sleep(0.02)  # more than comparing takes
            assert stream._arrivals._news.qsize() == 1  # it is whole
            list(visit)
            stream.confirm()
        assert len(stream._cache.records) == 4


def _at_least(things: list[Any], count: int) -> bool:
    return len(things) >= count


def test_sweeps_compute_while_digests_are_compared(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Arrivals._damage
    judged: list[Any] = []
    monkeypatch.setattr(Arrivals, "_damage", lambda *record: (judge(*record), judged.append(record))[0])
    with closing(ExpertStream(pack, 2)) as stream:  # too few: it waits for records now and then
        for count, _ in enumerate(stream.records(0, [1, 3, 5, 7]), 1):
            until(partial(_at_least, judged, min(count + 1, 4)))  # the caller computes


def test_a_damaged_record_is_found_before_anything_is_confirmed(tmp_path: Path) -> None:
    with Pack.open(two_layers(tmp_path)) as pack, closing(ExpertStream(pack, 8)) as stream:
        flip_bit(pack, 0, 4)
        with pytest.raises(MismatchError, match=r"layer 0, expert 4 .* is damaged"):
            computed_with(stream)
        check_slots(stream)
        assert (0, 4) not in stream._cache.records


def test_damage_that_is_heard_of_when_the_next_layer_begins_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    with Pack.open(two_layers(tmp_path)) as pack, closing(ExpertStream(pack, 8)) as stream:
        flip_bit(pack, 0, 4)
        list(stream.batches(0, [4]))
        held.go.set()
        with stream._arrivals.checking():
            until(lambda: not stream._arrivals._news.empty())
        with pytest.raises(MismatchError, match="expert 4"):
            next(stream.batches(1, [1]))
        check_slots(stream)
        stream.confirm()  # of nothing
        list(stream.batches(1, [1]))
        stream.confirm()


def computed_with(stream: ExpertStream) -> None:
    """As for one token: every layer, and then the question whether that was good."""
    for layer in range(2):
        list(stream.batches(layer, [1, 4, 7]))
    stream.confirm()


def test_the_digest_of_a_guess_is_not_waited_for(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    reader = SlowReader()
    with closing(reader.stream(pack, 8)) as stream:
        stream.foresee(1, [3], EXPERTS)
        reader.deliver()
        until(lambda: not stream._arrivals._news.empty())
        stream.confirm()
        assert (1, 3) in stream._arrivals
        held.go.set()
