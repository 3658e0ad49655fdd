"""What a pass enqueues, and in which command buffers and sections."""

from collections.abc import Callable
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


class Sum:
    """x += 1 on the device, pass by pass."""

    def __init__(self) -> None:
        device = Device()
        self.work = Work(device)
        self._kernel = Kernels(device).of(plain("combine.metal"))["add"]
        self._y, self._x = (device.buffer(4 * WIDTH, name) for name in "yx")
        self._y.bytes.view(np.float32)[:] = 1.0

    def enqueue(self) -> None:
        self.work.run(self._kernel, threads_grid(WIDTH), self._y, self._x, count(WIDTH))

    def fail(self, before: Callable[[], None] = lambda: None) -> None:
        """A pass that does something `before` it ends by an error."""
        with self.work.forward():
            self.enqueue()
            before()
            raise KeyError

    @property
    def value(self) -> float:
        """What every element is."""
        values = set(self._x.bytes.view(np.float32)[:WIDTH].tolist())
        assert len(values) == 1
        return float(values.pop())


def test_a_pass_that_ends_by_an_error_leaves_nothing_for_the_next(fake: ModuleType) -> None:
    sums = Sum()
    with pytest.raises(KeyError):
        sums.fail()
    assert fake.counters().command_buffers == 0
    with sums.work.forward():
        sums.enqueue()
    assert fake.counters().command_buffers == 1
    assert sums.value == 1.0


def test_what_an_interrupted_drop_left_is_not_done_by_the_next_pass(
    fake: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Work) -> None:
        raise KeyboardInterrupt

    sums = Sum()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        sums.fail(lambda: patch.setattr(Work, "drop", interrupted))
    assert sums.work.encoding
    with sums.work.forward():
        sums.enqueue()
    assert sums.value == 1.0
    assert {report.kind for report in fake.found()} <= {"encoding"}  # the host still had that encoder, and ended it


@pytest.mark.parametrize("mode", ["lazy", "async"])
def test_what_was_committed_before_an_error_is_waited_for(fake: ModuleType, mode: str) -> None:
    """The stand-in tells of a host that looks before it knows that the GPU is done."""
    fake.configure(mode=mode)
    sums = Sum()
    with pytest.raises(KeyError):
        sums.fail(sums.work.commit)
    assert sums.value == 1.0


def test_an_error_is_not_hidden_by_the_gpus_failure_of_the_same_pass(fake: ModuleType) -> None:
    sums = Sum()
    fake.fail_command_buffer(at=1, after=0, sentence="the GPU was reset", code=1)
    with pytest.raises(KeyError):
        sums.fail(sums.work.commit)
    with sums.work.forward():
        sums.enqueue()
    assert sums.value == 1.0


def test_a_pass_waits_for_all_but_as_many_as_it_is_told(fake: ModuleType) -> None:
    fake.configure(mode="lazy")
    sums = Sum()
    with sums.work.forward():
        for _ in range(3):
            sums.enqueue()
            sums.work.commit()
            sums.work.finish(1)
        assert fake.counters().host_waits["MainThread"] == 2
    assert fake.counters().host_waits["MainThread"] == 3
    assert sums.value == 3.0
