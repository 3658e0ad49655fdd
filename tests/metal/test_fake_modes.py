"""When and in what order the stand-in runs committed work, and what it counts."""

import struct
import threading
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import Metal
import numpy as np
import objc
import pytest
from metal.hosting import UNTRACKED, Host, bind, floats, run
from Metal.work import Pass

MODES = ("in-order", "async", "lazy")
ORDERS = (0, 1, 7, 8)
LAYERS = 6


def every_way(test: Any) -> Any:
    return pytest.mark.parametrize("mode", MODES)(pytest.mark.parametrize("order", ORDERS)(test))


@every_way
def test_work_is_done_when_it_was_waited_for(fake: ModuleType, mode: str, order: int) -> None:
    fake.configure(mode=mode, order=order)
    host = Host()
    x, y = host.buffer("x"), host.buffer("y")
    with host.commands() as commands:
        host.increment(commands, x, times=2)
        with host.encoder(commands, "increment") as encoder:
            bind(encoder, [x])
            run(encoder)
            encoder.setComputePipelineState_(host.pipeline("scale"))
            bind(encoder, [x, y, struct.pack("<f", 5.0)])
            run(encoder)
    commands.waitUntilCompleted()
    assert commands.status() == Metal.MTLCommandBufferStatusCompleted
    assert commands.error() is None
    assert np.array_equal(floats(y), np.full(64, 15.0))
    assert 0 < commands.GPUStartTime() < commands.GPUEndTime()


@every_way
def test_the_host_answers_within_a_command_buffer(fake: ModuleType, mode: str, order: int) -> None:
    """The shape of a token: the GPU signals after each layer, and goes on once the host has answered."""
    fake.configure(mode=mode, order=order)
    host = Host()
    event, x, answer, sums = host.device.newSharedEvent(), *map(host.buffer, ("x", "answer", "sums"))

    def answers() -> None:
        for layer in range(LAYERS):
            assert event.waitUntilSignaledValue_timeoutMS_(2 * layer + 1, 20_000)
            floats(answer)[:] = floats(x)[0] + 100 * layer
            event.setSignaledValue_(2 * layer + 2)

    thread = threading.Thread(target=answers, name="answers")
    before = fake.counters()
    thread.start()
    with host.commands("token") as commands:
        for layer in range(LAYERS):
            host.increment(commands, x)
            commands.encodeSignalEvent_value_(event, 2 * layer + 1)
            commands.encodeWaitForEvent_value_(event, 2 * layer + 2)
            host.scale(commands, answer, sums, 1.0)
    commands.waitUntilCompleted()
    thread.join()
    assert np.array_equal(floats(sums), np.full(64, 100.0 * (LAYERS - 1) + LAYERS))
    counted = fake.counters() - before
    assert (counted.command_buffers, counted.passes, counted.dispatches) == (1, 2 * LAYERS, 2 * LAYERS)
    assert (counted.gpu_signals, counted.gpu_waits, counted.host_signals) == (LAYERS, LAYERS, LAYERS)
    assert counted.host_waits == {"answers": LAYERS, "MainThread": 1}


def test_in_order_work_runs_at_once_and_stops_where_it_needs_the_host(fake: ModuleType) -> None:
    fake.configure(mode="in-order")
    host = Host()
    x, event = host.buffer("x"), host.device.newSharedEvent()
    event.setLabel_("answer")
    with host.commands("token") as commands:
        host.increment(commands, x)
        commands.encodeWaitForEvent_value_(event, 1)
        host.increment(commands, x)
    with host.commands("behind"):
        pass
    assert not event.waitUntilSignaledValue_timeoutMS_(1, 50)
    steps = [(step.kind, step.name) for step in fake.trace()]
    assert steps == [("pass", "pass 'increment' of command buffer 'token'"), ("idle", "'answer'")]
    event.setSignaledValue_(1)
    assert [step.kind for step in fake.trace()] == ["pass", "idle", "wait", "pass", "completed", "completed"]
    assert fake.counters().idle == 1
    assert commands.status() == Metal.MTLCommandBufferStatusCompleted


def test_lazy_work_waits_for_somebody_who_waits(fake: ModuleType) -> None:
    fake.configure(mode="lazy")
    host = Host()
    x, event = host.buffer("x"), host.device.newSharedEvent()
    with host.commands() as commands:
        host.increment(commands, x)
        commands.encodeSignalEvent_value_(event, 1)
        host.increment(commands, x)
        commands.encodeSignalEvent_value_(event, 2)
    assert fake.trace() == []
    assert event.signaledValue() == 0
    assert event.waitUntilSignaledValue_timeoutMS_(1, 20_000)
    assert event.signaledValue() == 1
    assert [step.kind for step in fake.trace()] == ["pass", "signal"]
    commands.waitUntilCompleted()
    assert floats(x)[0] == 2


def test_a_listener_is_somebody_who_waits(fake: ModuleType) -> None:
    fake.configure(mode="lazy")
    host = Host()
    x, event, heard = host.buffer("x"), host.device.newSharedEvent(), threading.Event()
    values: list[float] = []

    def block(_: Any, value: int) -> None:
        values.extend([value, floats(x)[0]])
        heard.set()

    event.notifyListener_atValue_block_(Metal.MTLSharedEventListener.alloc().init(), 1, block)
    with host.commands() as commands:
        host.increment(commands, x)
        commands.encodeSignalEvent_value_(event, 1)
    assert heard.wait(20)
    assert values == [1, 1.0]
    commands.waitUntilCompleted()


def finished(fake: ModuleType, order: int) -> list[str]:
    """The order in which passes ran that nothing orders."""
    fake.reset()
    fake.configure(mode="lazy", order=order)
    host = Host()
    buffers = [host.buffer(f"b{i}") for i in range(4)]
    for buffer in buffers:
        with host.commands(buffer.label()) as commands:
            host.increment(commands, buffer)
    commands.waitUntilCompleted()
    return [step.command_buffer for step in fake.trace() if step.kind == "pass"]


def test_the_order_of_independent_command_buffers_is_that_of_the_settings(fake: ModuleType) -> None:
    forward = [f"'b{i}'" for i in range(4)]
    assert finished(fake, 0) == forward
    assert finished(fake, 1) == forward[::-1]
    seeds = [finished(fake, seed) for seed in range(2, 12)]
    assert all(sorted(ran) == forward for ran in seeds)
    assert len({tuple(ran) for ran in seeds}) > 3
    assert finished(fake, 5) == finished(fake, 5)


@every_way
def test_tracked_buffers_fences_and_events_keep_their_order(fake: ModuleType, mode: str, order: int) -> None:
    fake.configure(mode=mode, order=order)
    host = Host()
    other, event, fence = host.device.newCommandQueue(), host.device.newEvent(), host.device.newFence()
    x, y, z = host.buffer("x"), host.buffer("y", options=UNTRACKED), host.buffer("z")
    with host.commands("other", other) as second:
        second.encodeWaitForEvent_value_(event, 1)
        host.scale(second, y, z, 3.0)
    with host.commands("first") as first:
        host.increment(first, x)
        host.increment(first, x)
        with host.encoder(first, "scale") as encoder:
            bind(encoder, [x, y, b"\0\0\0\x40"])
            run(encoder)
            encoder.updateFence_(fence)
        with host.encoder(first, "increment") as encoder:
            encoder.waitForFence_(fence)
            bind(encoder, [y])
            run(encoder)
        first.encodeSignalEvent_value_(event, 1)
    second.waitUntilCompleted()
    assert floats(z)[0] == 15


@every_way
def test_signals_of_a_queue_keep_their_order(fake: ModuleType, mode: str, order: int) -> None:
    fake.configure(mode=mode, order=order)
    host = Host()
    event, buffers = host.device.newSharedEvent(), [host.buffer(f"b{i}") for i in range(4)]
    for value, buffer in enumerate(buffers, 1):
        with host.commands(buffer.label()) as commands:
            host.increment(commands, buffer)
            commands.encodeSignalEvent_value_(event, value)
    for value, buffer in enumerate(buffers, 1):
        assert event.waitUntilSignaledValue_timeoutMS_(value, 20_000)
        assert floats(buffer)[0] == 1
    commands.waitUntilCompleted()


@every_way
def test_a_barrier_orders_the_dispatches_of_a_concurrent_encoder(fake: ModuleType, mode: str, order: int) -> None:
    fake.configure(mode=mode, order=order)
    host = Host()
    x, y, z = host.buffer("x"), host.buffer("y"), host.buffer("z")
    increment, scale = host.pipeline("increment"), host.pipeline("scale")

    def go(pipeline: Any, *arguments: Any) -> None:
        encoder.setComputePipelineState_(pipeline)
        bind(encoder, arguments)
        run(encoder)

    with host.commands() as commands, host.encoder(commands, "scale", Metal.MTLDispatchTypeConcurrent) as encoder:
        go(increment, x)
        go(increment, y)
        encoder.memoryBarrierWithScope_(Metal.MTLBarrierScopeBuffers)
        go(scale, x, y, struct.pack("<f", 3.0))
        encoder.memoryBarrierWithScope_(Metal.MTLBarrierScopeBuffers)
        go(increment, x)  # which was only read since the first barrier
        go(scale, y, z, struct.pack("<f", 2.0))
    commands.waitUntilCompleted()
    assert (floats(x)[0], floats(y)[0], floats(z)[0]) == (2, 3, 6)
    assert fake.counters().barriers == 2


def test_dispatches_that_may_overlap_go_in_the_order_of_the_settings(fake: ModuleType) -> None:
    def ran(order: int) -> list[str]:
        fake.configure(order=order)
        names: list[str] = []
        work = Pass(SimpleNamespace(_spend=lambda: None))
        for name in "abcdef":
            work.add(SimpleNamespace(name=name, reads=set(), writes=set(), run=partial(names.append, name)))
        work.run()
        return names

    assert (ran(0), ran(1)) == (list("abcdef"), list("fedcba"))
    assert sorted(ran(5)) == list("abcdef")
    assert len({tuple(ran(order)) for order in range(2, 12)}) > 5


def test_threads_go_in_the_order_of_the_settings(fake: ModuleType) -> None:
    host = Host()
    x = host.buffer("x")

    def last(order: int) -> float:
        """The thread that wrote last, of 64 that write the same."""
        fake.configure(order=order, workers=1)
        with host.commands() as commands, host.encoder(commands, "everybody") as encoder:
            bind(encoder, [x])
            run(encoder)
        commands.waitUntilCompleted()
        return float(floats(x)[0])

    assert (last(0), last(1)) == (63, 0)
    assert len({last(order) for order in range(2, 12)}) > 2


def test_threadgroup_memory_and_copies(fake: ModuleType) -> None:
    host = Host()
    x, y, z = host.buffer("x"), host.buffer("y"), host.buffer("z")
    floats(x)[:] = np.arange(64)
    with host.commands() as commands:
        with host.encoder(commands, "reversed") as encoder:
            bind(encoder, [x, y])
            encoder.setThreadgroupMemoryLength_atIndex_(256, 0)
            encoder.dispatchThreads_threadsPerThreadgroup_((16, 1, 1), (16, 1, 1))
            bind(encoder, [y, x])
            encoder.dispatchThreadgroups_threadsPerThreadgroup_((1, 1, 1), (16, 1, 1))
        blit = commands.blitCommandEncoder()
        blit.fillBuffer_range_value_(z, Metal.NSMakeRange(0, 256), 255)
        blit.copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size_(y, 0, z, 16, 16)
        blit.endEncoding()
    commands.waitUntilCompleted()
    assert np.array_equal(floats(y).reshape(16, 4), np.arange(64).reshape(16, 4)[::-1])
    assert np.array_equal(floats(x), np.arange(64))
    assert np.array_equal(floats(z)[4:8], floats(y)[:4])
    assert np.isnan(floats(z)[0])


def test_the_checker_runs_the_same_kernels(fake: ModuleType) -> None:
    fake.configure(checked=True)
    host = Host()
    x, y = host.buffer("x"), host.buffer("y")
    with host.commands() as commands:
        host.increment(commands, x)
        host.scale(commands, x, y, 7.0)
    commands.waitUntilCompleted()
    assert np.array_equal(floats(y), np.full(64, 7.0))


def test_a_handler_runs_before_the_wait_ends_and_may_look(fake: ModuleType) -> None:
    host = Host()
    x, seen = host.buffer("x"), list[float]()
    with objc.autorelease_pool():
        commands = host.queue.commandBuffer()
        commands.addCompletedHandler_(lambda _: seen.append(floats(x)[0]))
        host.increment(commands, x)
        commands.commit()
        commands.waitUntilCompleted()
    assert seen == [1.0]
