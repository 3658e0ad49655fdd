"""Knowledge of what came before is passed on: none of these hosts has a hazard, or touches memory too early."""

from types import ModuleType
from typing import Any

import pytest
from Metal.gpu import gpu
from metal.hosting import UNTRACKED, Host, bind, floats, run


@pytest.fixture(params=["in-order", "async", "lazy"])
def host(request: pytest.FixtureRequest, fake: ModuleType) -> Host:
    fake.configure(mode=request.param)
    return Host()


@pytest.fixture
def busy(host: Host) -> Any:
    """Something that never ends while a test runs, so that nothing of the past may be forgotten."""
    queue, gate = host.device.newCommandQueue(), host.device.newSharedEvent()
    with host.commands("busy", queue) as commands:
        commands.encodeWaitForEvent_value_(gate, 1)
        host.increment(commands, host.buffer("b"))
    yield commands
    gate.setSignaledValue_(1)
    commands.waitUntilCompleted()


def test_over_passes_that_metal_orders(host: Host) -> None:
    """The first writes `x`, untracked; the third knows of it by the second."""
    x, t, u = host.buffer("x", options=UNTRACKED), host.buffer("t"), host.buffer("u")
    with host.commands() as commands:
        with host.encoder(commands, "increment") as encoder:
            for buffer in (x, t):
                bind(encoder, [buffer])
                run(encoder)
        host.scale(commands, t, u, 2.0)
        with host.encoder(commands, "increment") as encoder:
            for buffer in (u, x):
                bind(encoder, [buffer])
                run(encoder)
    commands.waitUntilCompleted()
    assert floats(x)[0] == 2


def test_over_a_signal(host: Host) -> None:
    """The pass before the signal knows of the one that writes, which is of another command buffer."""
    x, y, other, event = host.buffer("x"), host.buffer("y"), host.device.newCommandQueue(), host.device.newEvent()
    with host.commands("first") as first:
        host.increment(first, x)
    with host.commands("second") as second:
        host.scale(second, x, y, 1.0)
        second.encodeSignalEvent_value_(event, 1)
    with host.commands("third", other) as third:
        third.encodeWaitForEvent_value_(event, 1)
        host.increment(third, x)
    third.waitUntilCompleted()
    assert floats(x)[0] == 2


def test_over_a_completed_command_buffer(host: Host) -> None:
    """It waited for another queue; who waits for it knows of that as well."""
    x, y, other, event = host.buffer("x"), host.buffer("y"), host.device.newCommandQueue(), host.device.newEvent()
    with host.commands("first") as first:
        host.increment(first, x)
        first.encodeSignalEvent_value_(event, 1)
    with host.commands("second", other) as second:
        second.encodeWaitForEvent_value_(event, 1)
        host.scale(second, x, y, 1.0)
    second.waitUntilCompleted()
    assert (floats(x)[0], floats(y)[0]) == (1, 1)
    first.waitUntilCompleted()


@pytest.mark.usefixtures("busy")
def test_over_the_host_which_commits_after_it_waited(host: Host) -> None:
    x, y, other = host.buffer("x"), host.buffer("y"), host.device.newCommandQueue()
    with host.commands("first") as first:
        host.increment(first, x)
    first.waitUntilCompleted()
    with host.commands("second", other) as second:
        host.scale(second, x, y, 1.0)
    second.waitUntilCompleted()
    assert floats(y)[0] == 1


@pytest.mark.usefixtures("busy")
def test_over_the_host_which_signals_after_it_waited(host: Host) -> None:
    x, y, other = host.buffer("x"), host.buffer("y"), host.device.newCommandQueue()
    written, go = host.device.newSharedEvent(), host.device.newSharedEvent()
    with host.commands("second", other) as second:
        second.encodeWaitForEvent_value_(go, 1)
        host.scale(second, x, y, 1.0)
    with host.commands("first") as first:
        host.increment(first, x)
        first.encodeSignalEvent_value_(written, 1)
    assert written.waitUntilSignaledValue_timeoutMS_(1, 20_000)
    go.setSignaledValue_(1)
    second.waitUntilCompleted()
    assert floats(y)[0] == 1
    first.waitUntilCompleted()


def test_the_past_is_forgotten_once_the_host_knows_all_of_it(host: Host) -> None:
    """Or every token would be remembered; and what is forgotten is no hazard."""
    x, y, other = host.buffer("x"), host.buffer("y"), host.device.newCommandQueue()
    for queue in (host.queue, other, host.queue, other):
        with host.commands("token", queue) as commands:
            host.increment(commands, x)
            host.scale(commands, x, y, 1.0)
        commands.waitUntilCompleted()
        assert gpu.order._passes == []
    assert floats(y)[0] == 4


@pytest.mark.parametrize("wait_first", [True, False])
def test_an_event_may_be_all_that_the_host_waits_for(fake: ModuleType, wait_first: bool) -> None:
    fake.configure(mode="async")
    host = Host()
    x, event, gate = host.buffer("x"), host.device.newSharedEvent(), host.device.newSharedEvent()
    with host.commands() as commands:
        host.increment(commands, x)
        commands.encodeSignalEvent_value_(event, 1)
        commands.encodeWaitForEvent_value_(gate, 1)
    steps = [lambda: event.waitUntilSignaledValue_timeoutMS_(1, 20_000), lambda: gate.setSignaledValue_(1)]
    for step in steps if wait_first else steps[::-1]:
        step()
    with gpu.lock:
        assert gpu.lock.wait_for(lambda: gpu.order._passes == [], 20)
