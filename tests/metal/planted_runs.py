"""Hosts with one fault each that shows only in what runs: hazards, memory touched or released too early, events."""

import ctypes
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import Metal
import objc
from metal import limits
from metal.hosting import UNTRACKED, Host, bind, floats, run
from metal.planting import pages, planted, wrap

# Hazards.


@planted(
    "hazard between passes", r"use buffer 'x', at least one writes it, it is not tracked .* neither a fence nor an"
)
def untracked_buffer_in_two_command_buffers(host: Host) -> None:
    x, y = host.buffer("x", options=UNTRACKED), host.buffer("y")
    with host.commands("first") as first:
        host.increment(first, x)
    with host.commands("second") as second:
        host.scale(second, x, y, 2.0)
    second.waitUntilCompleted()


@planted("hazard between passes", r"use buffer 'x', at least one writes it, it is not tracked")
def fence_that_nobody_waits_for(host: Host) -> None:
    x, fence = host.buffer("x", options=UNTRACKED), host.device.newFence()
    with host.commands() as commands:
        with host.encoder(commands, "increment") as encoder:
            bind(encoder, [x])
            run(encoder)
            encoder.updateFence_(fence)
        host.increment(commands, x)
    commands.waitUntilCompleted()


@planted("hazard between passes", r"use buffer 'x', .* it is tracked within one queue only, and they are of two")
def two_queues_without_an_event(host: Host) -> None:
    x, y, other = host.buffer("x"), host.buffer("y"), host.device.newCommandQueue()
    with host.commands("first") as first:
        host.increment(first, x)
    with host.commands("second", other) as second:
        host.scale(second, x, y, 2.0)
    first.waitUntilCompleted()
    second.waitUntilCompleted()


@planted("hazard between passes", r"use buffer 'x', .* it is tracked within one queue only, and they are of two")
def two_queues_and_the_wrong_value(host: Host) -> None:
    """The value waited for comes before the pass that writes."""
    x, y, other, event = host.buffer("x"), host.buffer("y"), host.device.newCommandQueue(), host.device.newEvent()
    with host.commands("first") as first:
        host.increment(first, y)
        first.encodeSignalEvent_value_(event, 1)
        host.increment(first, x)
        first.encodeSignalEvent_value_(event, 2)
    with host.commands("second", other) as second:
        second.encodeWaitForEvent_value_(event, 1)
        host.scale(second, x, y, 2.0)
    first.waitUntilCompleted()
    second.waitUntilCompleted()


@planted("hazard between passes", r"use buffer 'x', .* it is tracked within one queue only, and they are of two")
def value_of_an_earlier_token(host: Host) -> None:
    """The event has it already, and it says nothing of the pass that writes now."""
    x, y, other, event = host.buffer("x"), host.buffer("y"), host.device.newCommandQueue(), host.device.newEvent()
    with host.commands("earlier") as earlier:
        host.increment(earlier, x)
        earlier.encodeSignalEvent_value_(event, 1)
    earlier.waitUntilCompleted()
    with host.commands("first") as first:
        host.increment(first, x)
    with host.commands("second", other) as second:
        second.encodeWaitForEvent_value_(event, 1)
        host.scale(second, x, y, 2.0)
    first.waitUntilCompleted()
    second.waitUntilCompleted()


@planted("hazard between passes", r"use buffer 'x', at least one writes it, it is not tracked")
def fence_updated_again_by_the_other_pass(host: Host) -> None:
    """The wait is for the update before it, not for the one after it."""
    x, y, z = host.buffer("x", options=UNTRACKED), host.buffer("y"), host.buffer("z")
    fence = host.device.newFence()
    with host.commands() as commands:
        with host.encoder(commands, "increment") as encoder:
            bind(encoder, [y])
            run(encoder)
            encoder.updateFence_(fence)
        with host.encoder(commands, "scale") as encoder:
            encoder.waitForFence_(fence)
            bind(encoder, [x, z, struct.pack("<f", 1)])
            run(encoder)
        with host.encoder(commands, "increment") as encoder:
            bind(encoder, [x])
            run(encoder)
            encoder.updateFence_(fence)
    commands.waitUntilCompleted()


@planted("hazard between passes", r"use buffer 'x', .* it is tracked within one queue only, and they are of two")
def fence_of_another_queue(host: Host) -> None:
    x, y, other, fence = host.buffer("x"), host.buffer("y"), host.device.newCommandQueue(), host.device.newFence()
    with host.commands("first") as first, host.encoder(first, "increment") as encoder:
        bind(encoder, [x])
        run(encoder)
        encoder.updateFence_(fence)
    with host.commands("second", other) as second, host.encoder(second, "scale") as encoder:
        encoder.waitForFence_(fence)
        bind(encoder, [x, y, struct.pack("<f", 2.0)])
        run(encoder)
    first.waitUntilCompleted()
    second.waitUntilCompleted()


@planted("fence", r"waits for fence 'never', which nothing before it updates")
def fence_never_updated(host: Host) -> None:
    fence = host.device.newFence()
    fence.setLabel_("never")
    with host.commands() as commands, host.encoder(commands, "increment") as encoder:
        encoder.waitForFence_(fence)


@planted("fence", r"waits for fence 'late', which nothing before it updates")
def fence_updated_too_late(host: Host) -> None:
    fence = host.device.newFence()
    fence.setLabel_("late")
    with host.commands() as commands:
        with host.encoder(commands, "increment") as encoder:
            encoder.waitForFence_(fence)
        with host.encoder(commands, "increment") as encoder:
            encoder.updateFence_(fence)


# The host's memory.


@planted("host access", r"the host touched buffer 'x' while it did not know that pass 'increment' of .*'commands'")
def read_without_waiting(host: Host) -> None:
    x = host.buffer("x")
    seen = floats(x)
    with host.commands() as commands:
        host.increment(commands, x)
    seen.sum()
    commands.waitUntilCompleted()


@planted("host access", r"the host touched buffer 'y' while it did not know that pass 'scale' of .*'token'")
def read_after_the_wrong_value(host: Host) -> None:
    x, y, event = host.buffer("x"), host.buffer("y"), host.device.newSharedEvent()
    with host.commands("token") as commands:
        host.increment(commands, x)
        commands.encodeSignalEvent_value_(event, 1)
        host.scale(commands, x, y, 2.0)
        commands.encodeSignalEvent_value_(event, 2)
    assert event.waitUntilSignaledValue_timeoutMS_(1, 20_000)
    assert floats(x)[0] == 1
    floats(y).sum()
    commands.waitUntilCompleted()


@planted("host access", r"the host touched buffer 'x' while it did not know that pass 'increment'")
def written_by_native_code_without_waiting(host: Host) -> None:
    x = host.buffer("x")
    address = floats(x).ctypes.data
    with host.commands() as commands:
        host.increment(commands, x)
    ctypes.memset(address, 0, 8)
    commands.waitUntilCompleted()


@planted("host access", r"the host touched buffer 'y' while it did not know that pass 'increment' of .*'second'")
def read_after_the_wrong_command_buffer(host: Host) -> None:
    x, y = host.buffer("x"), host.buffer("y")
    with host.commands("first") as first:
        host.increment(first, x)
    with host.commands("second") as second:
        host.increment(second, y)
    first.waitUntilCompleted()
    assert floats(x)[0] == 1
    floats(y).sum()
    second.waitUntilCompleted()


@planted("host access", r"the host touched buffer 'y' while it did not know that pass 'increment' of .*'second'")
def read_what_waits_for_another_queue_only(host: Host) -> None:
    x, y, other, event = host.buffer("x"), host.buffer("y"), host.device.newCommandQueue(), host.device.newEvent()
    with host.commands("second", other) as second:
        second.encodeWaitForEvent_value_(event, 1)
        host.increment(second, y)
    with host.commands("first") as first:
        host.increment(first, x)
        first.encodeSignalEvent_value_(event, 1)
    floats(y).sum()
    second.waitUntilCompleted()


@planted("released memory", r"buffer 'x' was released while a command buffer still uses it")
def buffer_released_that_nothing_retains(host: Host) -> None:
    x, gate = host.buffer("x"), host.device.newSharedEvent()
    with objc.autorelease_pool():
        commands = host.queue.commandBufferWithUnretainedReferences()
        commands.encodeWaitForEvent_value_(gate, 1)
        host.increment(commands, x)
        commands.commit()
    del x
    gate.setSignaledValue_(1)
    commands.waitUntilCompleted()


@planted("released memory", r"the host's memory in buffer 'wrapped' was released while a command buffer still uses it")
def array_released_that_is_wrapped(host: Host) -> None:
    memory, y, gate = pages(1), host.buffer("y"), host.device.newSharedEvent()
    wrapped = wrap(host, memory, limits.PAGE)
    with host.commands() as commands:
        commands.encodeWaitForEvent_value_(gate, 1)
        host.scale(commands, wrapped, y, 2.0)
    del memory
    gate.setSignaledValue_(1)
    commands.waitUntilCompleted()


# Events.


@planted("event", r"event 'e' goes back from 2 to 1")
def host_signals_backwards(host: Host) -> None:
    event = host.device.newSharedEvent()
    event.setLabel_("e")
    event.setSignaledValue_(2)
    event.setSignaledValue_(1)


@planted("event", r"event 'e' goes back from 2 to 1")
def gpu_signals_backwards(host: Host) -> None:
    event = host.device.newEvent()
    event.setLabel_("e")
    with host.commands() as commands:
        commands.encodeSignalEvent_value_(event, 2)
        commands.encodeSignalEvent_value_(event, 1)
    commands.waitUntilCompleted()


def wait_for_ever(host: Host, label: str, signalled: int, waited: int) -> None:
    Metal.fake.configure(patience=0.2)
    event = host.device.newSharedEvent()
    event.setLabel_(label)
    with host.commands("token") as commands:
        commands.encodeWaitForEvent_value_(event, waited)
    event.setSignaledValue_(signalled)
    commands.waitUntilCompleted()


@planted("wait for ever", r"waits for command buffer 'token', .* event 'answer' to have 2, and it has 1")
def too_small_an_answer(host: Host) -> None:
    wait_for_ever(host, "answer", 1, 2)


@planted(
    "wait for ever", r"waits for the first of 65 command buffers of a queue, .* event 'gate' to have 1, and it has 0"
)
def more_command_buffers_than_a_queue_has(host: Host) -> None:
    Metal.fake.configure(patience=0.2)
    gate = host.device.newSharedEvent()
    gate.setLabel_("gate")
    for _ in range(limits.MAX_COMMAND_BUFFERS + 1):
        with host.commands() as commands:
            commands.encodeWaitForEvent_value_(gate, 1)


def handle(host: Host, handler: Callable[[Any], None]) -> None:
    with host.commands() as commands:
        commands.addCompletedHandler_(handler)
    commands.waitUntilCompleted()


@planted("handler", r"a completed handler of command buffer 'commands' raised ZeroDivisionError")
def handler_that_raises(host: Host) -> None:
    handle(host, lambda _: print(1 / 0))


@planted(
    "handler", r"a completed handler of command buffer 'commands' raised MetalAssertion.*too late to make an encoder"
)
def handler_that_encodes(host: Host) -> None:
    handle(host, lambda commands: commands.computeCommandEncoder())


# Kernels, under the checker.


@planted("kernel", r"program.metal:\d+: kernel shifted: ", checked=True)
def read_beyond_the_buffer(host: Host) -> None:
    x, y = host.buffer("x"), host.buffer("y")
    with host.commands() as commands, host.encoder(commands, "shifted") as encoder:
        bind(encoder, [x, y])
        run(encoder)
    commands.waitUntilCompleted()
    assert commands.status() == Metal.MTLCommandBufferStatusError


@planted("kernel", r"program.metal:\d+: kernel everybody: ", checked=True)
def threads_that_write_the_same(host: Host) -> None:
    x = host.buffer("x")
    with host.commands() as commands, host.encoder(commands, "everybody") as encoder:
        bind(encoder, [x])
        run(encoder)
    commands.waitUntilCompleted()
    assert commands.error().domain() == "MTLCommandBufferErrorDomain"


# Encoding.


@planted("encoding", r"encoder 'increment' was released without endEncoding")
def encoder_that_nobody_ends(host: Host) -> None:
    with objc.autorelease_pool():
        host.queue.commandBuffer().computeCommandEncoder().setLabel_("increment")


@planted("encoding", r"encoder 'increment' was released without endEncoding")
def encoder_left_by_an_error(host: Host) -> None:
    with suppress(KeyError), objc.autorelease_pool():
        host.queue.commandBuffer().computeCommandEncoder().setLabel_("increment")
        raise KeyError
