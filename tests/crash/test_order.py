"""The order of the calls of a build: what W1 and W4 of FORMAT.md ask for, in the log of a real one."""

from dataclasses import replace
from pathlib import Path

import pytest
from calls import Call
from order import check_build
from promises import Site


def target_of(site: Site) -> Path:
    return site.folder / "undisturbed/pack"


def test_every_file_is_published_before_it_is_journaled_and_the_manifest_and_the_name_come_last(site: Site) -> None:
    """W1, W4"""
    assert check_build(site.calls, target_of(site)) == len(site.expected) + 1  # and the journal that is set aside


def without(calls: list[Call], name: str, number: int) -> list[Call]:
    found = [call for call in calls if call.name == name][number]
    return [call for call in calls if call is not found]


@pytest.mark.parametrize("name", ["fsync", "fchmod", "rename"])
def test_a_call_left_out_would_be_noticed(site: Site, name: str) -> None:
    for number in range(2, sum(call.name == name for call in site.calls)):
        broken = [replace(call, number=at + 1) for at, call in enumerate(without(site.calls, name, number))]
        with pytest.raises((AssertionError, ValueError)):
            check_build(broken, target_of(site))
