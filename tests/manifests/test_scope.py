"""Which records a subset holds: every one in exactly one slice, and the same share on every machine for ever."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moepack.manifests.errors import UsageError
from moepack.manifests.sampling import drawn, parse_percent, share_of
from moepack.manifests.scope import Full, Quick, Share, Slice, parse_subset


@given(count=st.integers(1, 500), parts=st.integers(1, 60))
def test_every_record_is_in_exactly_one_slice(count: int, parts: int) -> None:
    slices = [parse_subset(f"{part}/{parts}", None).chosen(count) for part in range(1, parts + 1)]
    assert sorted(index for one in slices for index in one) == list(range(count))


@given(count=st.integers(1, 500), seed=st.integers(0, 2**70), percent=st.fractions("1/1000", 100))
def test_a_share_has_the_size_that_was_asked_for(count: int, seed: int, percent: Fraction) -> None:
    found = Share(percent, seed).chosen(count)
    assert len(found) == len(set(found)) == share_of(count, percent) >= 1
    assert list(found) == sorted(found)
    assert set(found) <= set(range(count))


def test_a_share_is_the_same_everywhere() -> None:
    """What a pipeline has checked under a seed has to stay what it was: these numbers may never change."""
    assert drawn(1000, 8, 0) == PINNED[0]
    assert drawn(1000, 8, 1) == PINNED[1]


PINNED = {0: [233, 250, 286, 453, 509, 728, 781, 844], 1: [155, 178, 320, 505, 765, 850, 942, 966]}


def test_seeds_draw_different_shares_and_all_records_are_drawn_by_some() -> None:
    shares = [frozenset(drawn(100, 10, seed)) for seed in range(100)]
    assert len(set(shares)) > 90
    assert frozenset().union(*shares) == set(range(100))


def test_all_and_nothing() -> None:
    assert list(Full().chosen(3)) == [0, 1, 2]
    assert list(Quick().chosen(3)) == []


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "0/0", "a/b", "-1/3", "1/3/5", "", "7", "1/99999999"])
def test_what_is_no_slice_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no subset"):
        parse_subset(text, None)


@pytest.mark.parametrize("text", ["0%", "101%", "5", "%", "-5%", "5%%", "1e3%", "nan%", ".5%", "٣%", "5 %x"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no subset"):
        parse_subset(text, None)
    with pytest.raises(UsageError, match="is not a share"):
        parse_percent(text)


def test_a_slice_has_no_seed() -> None:
    with pytest.raises(UsageError, match="3/7 is drawn by no seed"):
        parse_subset("3/7", 1)


def test_names_are_what_was_asked_for() -> None:
    assert [parse_subset("3/7", None).name, parse_subset("0.5%", 4).name] == ["3/7", "0.5% by seed 4"]
    assert parse_subset("3/7", None) == Slice(3, 7)
