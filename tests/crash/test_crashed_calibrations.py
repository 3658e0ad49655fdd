"""moe-pack calibrate keeps the promises of a build: a share of its calls here, every one in `make crash`."""

from collections.abc import Iterator

import pytest
from calibrations import calibration_site
from promises import Site, failures, kills, losses_of_power, one_fault_each


@pytest.fixture(scope="module")
def calibration(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root, folder = tmp_path_factory.mktemp("calibration"), site.folder.with_name(f"{site.folder.name}-calibration")
    with calibration_site(root, site.source, folder) as opened:
        yield opened


def test_kills_and_failures_end_with_the_same_file(calibration: Site) -> None:
    faults = [*kills(calibration, share=0.15), *failures(calibration, share=0.05)]
    assert one_fault_each(calibration, faults) == len(faults) > 20


def test_what_a_loss_of_power_leaves_can_be_gone_on_with(calibration: Site) -> None:
    strict, drawn = losses_of_power(calibration, draws=1, share=0.3)
    assert strict + drawn >= 10
