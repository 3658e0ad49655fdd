"""The memory plan: a promise that is kept, or refused with the number that works."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tinypack import build, tiny_model, tiny_plan

from moepack.layout.reader import Pack
from moepack.manifests.errors import UsageError
from moepack.runtime import memory
from moepack.runtime.memory import MemoryPlan, plan


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    folder = tmp_path_factory.mktemp("planned")
    build(folder / "pack", tiny_plan(folder, tiny_model(layers=2, experts=9)))
    with Pack.open(folder / "pack") as opened:
        yield opened


def planned(pack: Pack, budget: int | None, slots: int | None = None, context: int | None = None) -> MemoryPlan:
    return plan(pack, memory=budget, slots=slots, context=context, chunk=16)


def test_a_large_budget_holds_every_expert_and_no_more(pack: Pack) -> None:
    found = planned(pack, 10**12)
    assert found.slots == 18
    assert sum(found.parts().values()) == found.total


@pytest.mark.parametrize("slots", [None, 1, 5])
def test_the_smallest_budget_it_names_works_and_one_byte_less_does_not(pack: Pack, slots: int | None) -> None:
    with pytest.raises(UsageError) as refused:
        planned(pack, 1000, slots)
    smallest = int(re.search(r"(\d+) bytes", str(refused.value))[1])
    found = planned(pack, smallest, slots)
    assert found.slots == (slots or 1)
    assert found.total <= smallest
    with pytest.raises(UsageError, match="too few"):
        planned(pack, smallest - 1, slots)


def test_more_context_leaves_fewer_slots(pack: Pack) -> None:
    budget = planned(pack, 10**12, slots=10, context=1).total + memory.HUGE_PAGE
    assert planned(pack, budget, context=1).slots == 10
    assert planned(pack, budget, context=64).state > planned(pack, budget, context=1).state


def test_the_state_is_counted_to_the_byte(pack: Pack) -> None:
    """One linear layer: conv [3, 32] and memory [2, 8, 8]; one full layer: 2 x 16 floats per position."""
    assert planned(pack, 10**12, context=10).state == 4 * (3 * 32 + 2 * 8 * 8) + 10 * 2 * 4 * 16


def test_the_default_budget_is_what_is_available(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_system_available", lambda: 8_000_000_000)
    monkeypatch.setattr(memory, "_group_available", lambda: [4_000_000_000])
    assert planned(pack, None).budget == 3_000_000_000


def test_what_this_machine_has(tmp_path: Path) -> None:
    assert 0 < memory.available_memory() < 2**50
