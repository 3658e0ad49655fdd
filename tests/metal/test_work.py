"""What a pass enqueues, and in which command buffers and sections."""

from types import ModuleType

import numpy as np
import pytest

from moepack.runtime.backends.metal.device import Device
from moepack.runtime.backends.metal.launches import count, threads_grid
from moepack.runtime.backends.metal.library import Kernels, plain
from moepack.runtime.backends.metal.work import Work

WIDTH = 300


@pytest.mark.parametrize("between", ["signal", "wait"])
def test_a_section_goes_on_after_an_event(fake: ModuleType, between: str) -> None:
    device = Device()
    work, event, kernel = Work(device), device.event(), Kernels(device).of(plain("combine.metal"))["add"]
    buffers = [device.buffer(4 * WIDTH, name) for name in "yx"]
    y, x = (buffer.bytes.view(np.float32) for buffer in buffers)
    y[:] = 1.0
    event.signal(1)
    with work.forward():
        work.section("sums")
        work.run(kernel, threads_grid(WIDTH), *buffers, count(WIDTH))
        getattr(work, between)(event, 2 if between == "signal" else 1)
        work.run(kernel, threads_grid(WIDTH), *buffers, count(WIDTH))
    assert x.tolist() == [2.0] * WIDTH
