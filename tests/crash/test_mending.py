"""repair, lock and sign under kills and failing disks: a share of repair's calls here, every one in `make crash`."""

from pathlib import Path

import pytest
from calls import changes
from mending import DAMAGED, lock_deed, losses_of_power_in_repairs, repair_deed, sign_deed
from promises import Site, failures, kills


def test_a_repair_leaves_each_file_as_it_was_or_mended_and_the_same_command_ends_it(site: Site) -> None:
    deed = repair_deed(site)
    renamed = [call.other for call in changes(deed.site.calls) if call.name == "rename"]
    assert {str(path).partition("undisturbed/pack/")[2] for path in renamed} > set(DAMAGED)
    faults = [*kills(deed.site, share=0.3), *failures(deed.site, share=0.06)]
    assert deed.one_fault_each(faults) == len(faults) > 60
    strict, drawn = losses_of_power_in_repairs(deed, draws=1, share=0.3)
    assert strict >= 4
    assert drawn >= 10


def test_a_lock_is_absent_or_complete(site: Site) -> None:
    deed = lock_deed(site)
    faults = [*kills(deed.site), *failures(deed.site)]
    assert deed.one_fault_each(faults) == len(faults) > 25


def test_a_signature_is_absent_or_complete(site: Site, tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    deed = sign_deed(site, tmp_path)
    faults = [*kills(deed.site), *failures(deed.site, share=0.3)]
    assert deed.one_fault_each(faults) == len(faults) > 25
