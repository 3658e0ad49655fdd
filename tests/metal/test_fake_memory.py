"""Buffers, who keeps them alive, and how allocations and autoreleased objects are counted."""

import gc
import mmap
import threading
from types import ModuleType

import Metal
import numpy as np
import objc
import pytest
from metal import limits
from metal.hosting import Host, bind, floats, run
from metal.planting import pages, wrap


def test_buffers_begin_as_zeros_or_as_a_copy(fake: ModuleType) -> None:
    device = Metal.MTLCreateSystemDefaultDevice()
    data = np.arange(100, dtype=np.float32)
    copy = device.newBufferWithBytes_length_options_(data, data.nbytes, 0)
    data[:] = 7
    assert np.array_equal(floats(copy), np.arange(100))
    assert not floats(device.newBufferWithLength_options_(5000, 0)).any()
    assert copy.length() == 400
    assert copy.storageMode() == Metal.MTLStorageModeShared
    assert copy.hazardTrackingMode() == Metal.MTLHazardTrackingModeDefault


def test_wrapped_memory_is_the_hosts_own(fake: ModuleType) -> None:
    host = Host()
    memory = pages(2)
    wrapped, y = wrap(host, memory, memory.nbytes), host.buffer("y")
    memory.view(np.float32)[:] = 3
    with host.commands() as commands:
        host.scale(commands, wrapped, y, 2.0)
        host.increment(commands, wrapped)
    commands.waitUntilCompleted()
    assert floats(y)[0] == 6
    assert memory.view(np.float32)[0] == 4
    assert floats(wrapped).ctypes.data == memory.ctypes.data


def test_a_deallocator_is_called_with_the_memory(fake: ModuleType) -> None:
    memory, calls = pages(1), list[tuple[int, int]]()
    device = Metal.MTLCreateSystemDefaultDevice()
    buffer = device.newBufferWithBytesNoCopy_length_options_deallocator_(
        memory, memory.nbytes, 0, lambda address, length: calls.append((address, length))
    )
    assert buffer is not None
    assert calls == []
    del buffer
    gc.collect()
    assert calls == [(memory.ctypes.data, limits.PAGE)]


def test_memory_is_seen_to_be_gone(fake: ModuleType) -> None:
    from Metal.memory import Wrapped

    mapping = mmap.mmap(-1, limits.PAGE)
    of_mapping, of_view = Wrapped(mapping, limits.PAGE), Wrapped(memoryview(mapping)[:4096], 4096)
    array = np.zeros(limits.PAGE, np.uint8)
    of_array, of_part = Wrapped(array, limits.PAGE), Wrapped(array[100:], 100)
    everything = [of_mapping, of_view, of_array, of_part]
    gc.collect()
    assert not any(wrapped.released() for wrapped in everything)
    mapping.close()
    del array
    assert all(wrapped.released() for wrapped in everything)


def test_allocations_are_counted_per_label(fake: ModuleType) -> None:
    host = Host()
    pipeline, x = host.pipeline("increment"), host.buffer("x", 5000)
    warm = fake.counters()
    assert (
        warm.allocations["buffer x"]
        == warm.allocations["pipeline increment"]
        == warm.allocations["queue increment"] + 1
    )
    assert warm.bytes_allocated == 2 * limits.PAGE == x.allocatedSize()
    for _ in range(3):  # tokens that allocate nothing
        with host.commands() as commands:
            encoder = commands.computeCommandEncoder()
            encoder.setComputePipelineState_(pipeline)
            bind(encoder, [x])
            run(encoder)
            encoder.endEncoding()
        commands.waitUntilCompleted()
    assert (fake.counters() - warm).allocated == ()
    host.buffer("scratch")
    host.device.newSharedEvent()
    assert (fake.counters() - warm).allocations == {"buffer scratch": 1, "event without a label": 1}


@pytest.mark.parametrize("over_retain", [False, True])
def test_the_bridge_may_retain_what_is_new_once_too_often(fake: ModuleType, over_retain: bool) -> None:
    fake.configure(over_retain=over_retain)
    device = Metal.MTLCreateSystemDefaultDevice()
    buffer = device.newBufferWithLength_options_(100, 0)
    assert buffer.retainCount() == 1 + over_retain
    assert device.newSharedEvent().retainCount() == 1 + over_retain
    assert device.currentAllocatedSize() == limits.PAGE
    del buffer
    gc.collect()
    assert device.currentAllocatedSize() == limits.PAGE * over_retain


def test_autoreleased_objects_need_a_pool(fake: ModuleType) -> None:
    host = Host()
    x = host.buffer("x")
    with host.commands() as commands:
        host.increment(commands, x)
    commands.waitUntilCompleted()
    assert fake.outside_pools() == {}
    commands = host.queue.commandBuffer()
    commands.computeCommandEncoder().endEncoding()
    commands.commit()
    commands.waitUntilCompleted()
    assert fake.outside_pools() == {"MTLCommandBuffer": 1, "MTLComputeCommandEncoder": 1}


def test_a_pool_is_of_its_thread(fake: ModuleType) -> None:
    host = Host()
    with objc.autorelease_pool():
        thread = threading.Thread(target=host.queue.commandBuffer)
        thread.start()
        thread.join()
    assert fake.outside_pools() == {"MTLCommandBuffer": 1}


def test_the_host_may_look_once_it_knows(fake: ModuleType) -> None:
    """By a wait for the right value, by a wait for a later command buffer of the queue, by a poll of the status."""
    host = Host()
    x, y, event = host.buffer("x"), host.buffer("y"), host.device.newSharedEvent()
    with host.commands() as first:
        host.increment(first, x)
        first.encodeSignalEvent_value_(event, 1)
        host.increment(first, y)
    assert event.waitUntilSignaledValue_timeoutMS_(1, 20_000)
    assert floats(x)[0] == 1
    with host.commands() as second:
        host.increment(second, x)
    second.waitUntilCompleted()
    assert floats(x)[0] == 2
    assert floats(y)[0] == 1
    with host.commands() as third:
        host.increment(third, x)
    while third.status() != Metal.MTLCommandBufferStatusCompleted:
        pass
    assert floats(x)[0] == 3
    assert fake.found() == []


def test_the_host_may_prepare_what_the_gpu_cannot_reach_yet(fake: ModuleType) -> None:
    """Memory that only work behind the host's own signal writes is still the host's."""
    host = Host()
    x, gate = host.buffer("x"), host.device.newSharedEvent()
    with host.commands() as commands:
        commands.encodeWaitForEvent_value_(gate, 1)
        host.increment(commands, x)
    floats(x)[:] = 5
    assert fake.found() == []
    gate.setSignaledValue_(1)
    floats(x).sum()
    assert [report.kind for report in fake.found()] == ["host access"]
    commands.waitUntilCompleted()
    assert floats(x)[0] == 6
