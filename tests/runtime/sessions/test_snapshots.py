"""A sequence continued from snapshots is the one that was never interrupted, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from checkpoints import ODD, CheckpointMaker, Variant
from packs import build_pack

from moepack.manifests.errors import UsageError
from moepack.runtime.engine import Engine, EngineOptions, Turn

TOKENS = list(map(int, np.random.default_rng(5).integers(0, 200, 60)))


@pytest.fixture(scope="module")
def pack(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packs") / "odd"
    build_pack(make_checkpoint(Variant(ODD)), path, expert_format="affine4-g64", trunk="affine8-g64")
    return path


def opened(path: Path, **options: object) -> Engine:
    return Engine.open(path, EngineOptions(threads=2, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("cuts", [(17,), (1, 2, 40), (5, 30, 31)])
def test_a_continued_sequence_is_the_uninterrupted_one(pack: Path, cuts: tuple[int, ...]) -> None:
    with opened(pack) as engine:
        wanted = engine.new_session().extend_all(TOKENS)
        session, snapshots = engine.new_session(), []
        for first, last in zip((0, *cuts), cuts, strict=False):
            session.extend(TOKENS[first:last])
            snapshots.append(session.snapshot(first))
        other = engine.new_session()
        other.extend(TOKENS[30:])  # whatever it was before
        other.restore(snapshots)
        assert other.position == cuts[-1]
        assert np.array_equal(other.extend_all(TOKENS[cuts[-1] :]), wanted[cuts[-1] :])
        session.restore(snapshots[:1])
        assert np.array_equal(session.extend_all(TOKENS[cuts[0] :]), wanted[cuts[0] :])
        session.restore([])
        assert np.array_equal(session.extend_all(TOKENS), wanted)


@pytest.mark.parametrize("marks", [(1,), (17, 18), (5, 40, 59)])
def test_a_mark_inside_of_a_turn_is_as_if_the_turn_had_ended_there(pack: Path, marks: tuple[int, ...]) -> None:
    with opened(pack) as engine:
        apart, wanted = engine.new_session(), []
        for first, last in zip((0, *marks), marks, strict=False):
            apart.extend(TOKENS[first:last])
            wanted.append(apart.snapshot(first))
        sessions = [engine.new_session() for _ in range(2)]
        sessions[1].extend(TOKENS[:3])
        logits = engine.extend([Turn(sessions[0], TOKENS, 1, marks), Turn(sessions[1], TOKENS[3:], 1, [1])])
        assert np.array_equal(*logits)
        assert np.array_equal(logits[0][0], engine.new_session().extend(TOKENS))
        found = [sessions[0].snapshot(first, last) for first, last in zip((0, *marks), marks, strict=False)]
        assert [each.size for each in found] == [sessions[0].snapshot_bytes(each.first, each.last) for each in found]
        sessions[1].restore([sessions[1].snapshot(0, 4)])
        assert np.array_equal(sessions[1].extend(TOKENS[4:]), logits[0][0])
    for one, other in zip(found, wanted, strict=True):
        pairs = zip(one.layers, other.layers, strict=True)
        assert all(np.array_equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


def test_a_snapshot_is_a_copy(pack: Path) -> None:
    with opened(pack) as engine:
        session = engine.new_session()
        session.extend(TOKENS[:9])
        snapshot = session.snapshot(0)
        before = [array.copy() for copies in snapshot.layers for array in copies]
        session.extend(TOKENS[9:20])
        after = [array for copies in snapshot.layers for array in copies]
        assert all(np.array_equal(*both) for both in zip(before, after, strict=True))
        assert snapshot.size == sum(array.nbytes for array in after)


def test_a_session_that_an_error_ended_can_be_brought_back(pack: Path) -> None:
    with opened(pack) as engine:
        session = engine.new_session()
        session.extend(TOKENS[:5])
        kept = session.snapshot(0)
        session.failed = True
        with pytest.raises(UsageError, match="ended by an error"):
            session.snapshot(0)
        session.restore([kept])
        assert np.array_equal(session.extend(TOKENS[5:9]), engine.new_session().extend(TOKENS[:9]))


def test_what_does_not_fit_or_follow_is_refused(pack: Path) -> None:
    with opened(pack, context=40) as engine, opened(pack, context=8) as small:
        session = engine.new_session()
        session.extend(TOKENS[:5])
        first = session.snapshot(0)
        session.extend(TOKENS[5:12])
        second = session.snapshot(5)
        with pytest.raises(ValueError, match="do not follow"):
            session.restore([second])
        with pytest.raises(ValueError, match="do not follow"):
            session.restore([second, first])
        with pytest.raises(UsageError, match="12 tokens do not fit the context of 8"):
            small.new_session().restore([first, second])
    with pytest.raises(UsageError, match="closed"):
        session.restore([first])
