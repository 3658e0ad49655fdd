"""The stand-in for `Metal`, for the tests of this folder; and what becomes of them where it does not run."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from metal import on_device, standin

standin.install()
OF_THE_STANDIN = ("test_fake_", "test_msl_")


class LeftOut(pytest.Module):
    """A module of tests that is skipped before it is imported."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip(standin.WHY_NOT, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Tests of the stand-in itself cannot even be imported elsewhere."""
    if standin.RUNS or not module_path.name.startswith(OF_THE_STANDIN):
        return None
    left_out: LeftOut = LeftOut.from_parent(parent, path=module_path)
    return left_out


@pytest.fixture
def fake() -> Iterator[ModuleType]:
    """`Metal.fake`, fresh; whatever a test did not ask about by `fake.found()` must not have gone wrong."""
    if not standin.RUNS:
        pytest.skip(standin.WHY_NOT)
    from Metal import fake as control

    control.reset()
    yield control
    left = control.found()
    control.reset()
    assert not left, left[0].sentence


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> ModuleType | None:
    """For tests that any device can run: `fake`, or None if there is a real one. Skips if there is neither."""
    if standin.RUNS:
        control: ModuleType = request.getfixturevalue("fake")
        return control
    on_device.opened()
    return None
