"""Every planted host fault is caught, by one clear sentence, in every mode; and nothing else is found."""

import re
from collections import Counter
from types import ModuleType

import pytest
from metal import planted_calls, planted_runs
from metal.hosting import Host
from metal.planting import PLANTED, Planted


def sentences(fake: ModuleType, faulty: Planted) -> list[str]:
    """What the stand-in says about it: at the call, or afterwards."""
    host = Host()
    try:
        faulty.run(host)
    except fake.MetalAssertion as assertion:
        return [str(assertion), *(report.sentence for report in fake.found())]
    return [report.sentence for report in fake.found()]


@pytest.mark.parametrize("mode", ["in-order", "async", "lazy"])
@pytest.mark.parametrize("faulty", PLANTED, ids=lambda faulty: faulty.run.__name__)
def test_a_planted_fault_is_caught(fake: ModuleType, faulty: Planted, mode: str) -> None:
    fake.configure(mode=mode, checked=faulty.checked)
    found = sentences(fake, faulty)
    assert len(found) == 1, found
    assert re.search(faulty.sentence, found[0])
    assert "\n" not in found[0]


@pytest.mark.parametrize(
    "faulty", [f for f in PLANTED if f.kind.startswith("hazard between")], ids=lambda f: f.run.__name__
)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_hazards_are_found_in_whatever_order_the_work_ran(fake: ModuleType, faulty: Planted, order: int) -> None:
    fake.configure(order=order)
    (found,) = sentences(fake, faulty)
    assert re.search(faulty.sentence, found)


def test_there_are_two_of_every_class() -> None:
    assert {faulty.run.__module__ for faulty in PLANTED} == {planted_calls.__name__, planted_runs.__name__}
    counts = Counter(faulty.kind for faulty in PLANTED)
    assert min(counts.values()) >= 2, counts
