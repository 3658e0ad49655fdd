"""moe-pack build, killed at every system call that changes the disk, and at random. Covers FORMAT.md W1 and W2."""

from calls import changes
from machine import Action
from promises import Site, kills, kills_of_resumes, one_fault_each, random_kills


def test_a_kill_at_any_call_leaves_no_half_pack_and_the_same_command_ends_with_the_same_bytes(site: Site) -> None:
    """W1 and, for interruptions, W2"""
    faults = kills(site)
    assert sum(fault.action == Action.KILL for fault in faults) == len(changes(site.calls)) > 100
    assert one_fault_each(site, faults) == len(faults)


def test_kills_at_random_moments(site: Site) -> None:
    assert random_kills(site, 20) == 20


def test_kills_of_a_resume_of_a_resume(site: Site) -> None:
    chains, killed = kills_of_resumes(site, 6)
    assert killed >= 2 * chains
