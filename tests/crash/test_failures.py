"""moe-pack build on a disk that fails, is full, forgets or is held by another: the same promises as after a kill."""

import errno
import signal

import pytest
from calls import changes
from machine import Action, Fault
from promises import (
    STORAGE,
    Case,
    Site,
    failures,
    losses_of_power,
    losses_of_power_in_resumes,
    one_fault_each,
    two_packers,
)


def test_a_disk_that_fails_or_is_full_is_one_sentence_and_resumable(site: Site) -> None:
    """A share of the calls; `make crash` tries every one."""
    faults = failures(site, share=0.15)
    assert one_fault_each(site, faults) == len(faults) > 70


def test_what_fails_after_the_last_rename_is_told_of_a_complete_pack(site: Site) -> None:
    def case(case: Case) -> None:
        run = case.build(Fault(Action.FAIL, renamed + int(case.folder.name), errno.EIO))
        assert run.code == STORAGE
        assert run.sentence.startswith(f"{case.target} is complete, but the system failed")
        assert case.whole_or_absent()

    renamed = next(call.number for call in site.calls if call.name == "rename" and call.path.name == "pack.partial")
    site.each(case, ["1", "2"])
    assert renamed + 2 == len(changes(site.calls))


def test_what_a_loss_of_power_leaves_can_be_gone_on_with(site: Site) -> None:
    strict, drawn = losses_of_power(site, draws=3, share=0.4)
    assert strict >= 5
    assert drawn >= 30


def test_what_a_loss_of_power_leaves_of_a_resume_can_be_gone_on_with(site: Site) -> None:
    strict, drawn = losses_of_power_in_resumes(site, draws=1, share=0.01)
    assert strict >= 20
    assert drawn >= 20


def test_of_two_packers_on_one_target_the_second_leaves_at_once(site: Site) -> None:
    pairs, refused = two_packers(site, share=0.1)
    assert refused >= pairs - 3  # at the first calls nothing is held yet, and after the last there is a pack


def test_the_lock_of_a_packer_that_was_killed_holds_nobody(site: Site) -> None:
    def case(case: Case) -> None:
        held = case.build(Fault(Action.STOP, len(changes(site.calls)) // 2))
        with site.machine() as other:
            refused = Case(site, other, case.folder).build()
            assert refused.code == STORAGE
            assert refused.sentence.startswith(
                f"another moe-pack (pid {held.process}) is writing {case.target}.partial"
            )
            assert case.machine.go_on(held, signal.SIGKILL).killed
            assert Case(site, other, case.folder).build().code == 0
        assert case.whole_or_absent()

    site.each(case, ["stale"])


def test_a_target_on_another_file_system_than_its_source_and_temporary_files(site: Site) -> None:
    """Every build of these tests is one, and its TMPDIR does not exist; nothing is made elsewhere and then moved."""
    if site.source.stat().st_dev == site.folder.stat().st_dev:
        pytest.skip("there is only one file system to write to here")
    assert all(site.folder in call.path.parents for call in site.calls)
