"""The stand-in for `Metal`, for the tests of this folder."""

from collections.abc import Iterator
from types import ModuleType

import pytest
from metal import standin

standin.install()


@pytest.fixture
def fake() -> Iterator[ModuleType]:
    """`Metal.fake`, fresh; whatever a test did not ask about by `fake.found()` must not have gone wrong."""
    from Metal import fake as control

    control.reset()
    yield control
    left = control.found()
    control.reset()
    assert not left, left[0].sentence
