"""The module that speaks to Metal: what it makes, and one sentence of ours for whatever Metal refuses."""

import mmap
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from metal import limits, standin

from moepack.manifests.errors import DeviceError, UnsupportedError
from moepack.runtime.arena import reserve
from moepack.runtime.backends.metal import sources
from moepack.runtime.backends.metal.device import Device, Pipeline
from moepack.runtime.backends.metal.launches import count, threads_grid
from moepack.runtime.backends.metal.library import Build, Kernels, plain

WIDTH = 300
MODES = ("in-order", "async", "lazy") if standin.RUNS else ("real",)


class Sums:
    """x += sigmoid(gate) * y: a kernel, its buffers, and the device they are of."""

    def __init__(self) -> None:
        self.device = Device()
        self.kernel: Pipeline = Kernels(self.device).of(plain("combine.metal"))["add_gated"]
        self.x, self.y, self.gate = (self.device.buffer(4 * size, name) for name, size in SIZES.items())
        floats(self.y)[:], floats(self.gate)[:] = 1.0, 0.0  # sigmoid(0) is a half

    def encode(self, commands: Any) -> None:
        commands.run(self.kernel, threads_grid(WIDTH), [self.y, self.gate, self.x, count(WIDTH)])


SIZES = {"x": WIDTH, "y": WIDTH, "gate": 1}


def floats(buffer: Any) -> np.ndarray:
    return buffer.bytes.view(np.float32)


@pytest.fixture
def sums(gpu: ModuleType | None) -> Iterator[Sums]:
    """No object may be left without a pool that releases it; only the stand-in can tell."""
    yield Sums()
    assert gpu is None or gpu.outside_pools() == {}


@pytest.mark.parametrize("mode", MODES)
def test_sections_events_and_offsets(gpu: ModuleType | None, sums: Sums, mode: str) -> None:
    if gpu is not None:
        gpu.configure(mode=mode)
    event = sums.device.event()
    with sums.device.pool():
        commands = sums.device.commands("token 0")
        commands.section("first")
        sums.encode(commands)
        sums.encode(commands)
        commands.signal(event, 1)
        commands.wait(event, 2)
        commands.section("second")
        sums.encode(commands)
        tail = [sums.y, sums.gate, (sums.x, 4 * (WIDTH - 10)), count(10)]
        commands.run(sums.kernel, threads_grid(10), tail)
        commands.commit()
        assert event.wait(1, 60_000)
        assert floats(sums.x).tolist() == [1.0] * WIDTH  # and no more, before the host's signal
        event.signal(2)
        commands.finish()
    assert floats(sums.x).tolist() == [1.5] * (WIDTH - 10) + [2.0] * 10


def test_kernels_of_a_section_take_turns(fake: ModuleType, sums: Sums) -> None:
    clear = Kernels(sums.device).of(plain("combine.metal"))["clear"]
    with sums.device.pool():
        commands = sums.device.commands("token 0")
        commands.section("sums")
        sums.encode(commands)
        commands.run(clear, threads_grid(10), [sums.x, count(10)])
        sums.encode(commands)
        commands.commit()
        commands.finish()
    assert floats(sums.x).tolist() == [0.5] * 10 + [1.0] * (WIDTH - 10)


def test_a_wait_ends_the_section(fake: ModuleType, sums: Sums) -> None:
    event = sums.device.event()
    with sums.device.pool():
        commands = sums.device.commands("token 0")
        commands.section("sums")
        sums.encode(commands)
        commands.wait(event, 1)
        commands.commit()
        event.signal(1)
        commands.finish()
    assert floats(sums.x).tolist() == [0.5] * WIDTH


def test_an_event_that_does_not_come_is_waited_for_no_longer_than_asked(sums: Sums) -> None:
    assert not sums.device.event().wait(1, 1)


def test_memory_of_the_hosts_is_used_in_place(sums: Sums) -> None:
    memory = reserve(limits.PAGE)
    sums.x = sums.device.wrap(memory, "slots")
    with sums.device.pool():
        commands = sums.device.commands("token 0")
        commands.section("sums")
        sums.encode(commands)
        commands.commit()
        commands.finish()
    assert memory[: 4 * WIDTH].view(np.float32).tolist() == [0.5] * WIDTH
    page = mmap.PAGESIZE
    for part in (memory[64 : 64 + page], memory[: page + 64]):  # which begins, and which ends, within a page
        with pytest.raises(ValueError, match="slots is not whole pages"):
            sums.device.wrap(part, "slots")


def test_a_failure_names_the_section_and_the_command_buffer(fake: ModuleType, sums: Sums) -> None:
    fake.fail_command_buffer(after=1, sentence="Caused GPU Hang Error")
    with sums.device.pool():
        commands = sums.device.commands("token 7")
        for label in ("layer 0: experts", "layer 1: attention", "layer 1: experts"):
            commands.section(label)
            sums.encode(commands)
        commands.commit()
        with pytest.raises(
            DeviceError, match=r"^the GPU failed in layer 1: attention of token 7: Caused GPU Hang Error$"
        ):
            commands.finish()


def test_a_failure_of_no_section_names_the_command_buffer(fake: ModuleType, sums: Sums) -> None:
    fake.fail_command_buffer(after=9, sentence="Insufficient Memory")
    with sums.device.pool():
        commands = sums.device.commands("token 7")
        commands.section("sums")
        sums.encode(commands)
        commands.check()
        commands.commit()
        with pytest.raises(DeviceError, match=r"^the GPU failed in token 7: Insufficient Memory$"):
            commands.finish()


def test_what_the_device_tells(fake: ModuleType) -> None:
    fake.configure(max_buffer_length=1 << 20, working_set=1 << 21)
    device = Device()
    assert (device.most_in_buffer, device.working_set) == (1 << 20, 1 << 21)
    for refused in (lambda: device.buffer((1 << 20) + 1, "trunk"), lambda: device.wrap(reserve(1 << 21), "trunk")):
        with pytest.raises(DeviceError, match=r"^trunk needs \d+ bytes in one buffer, and .* allows 1048576; "):
            refused()
    assert len(device.buffer(1 << 20, "trunk")) == len(device.wrap(reserve(1 << 20), "trunk")) == 1 << 20


def test_memory_that_is_refused(fake: ModuleType) -> None:
    device = Device()
    fake.refuse_allocations(count=2)
    with pytest.raises(DeviceError, match=r"gave no memory for a buffer of 4096 bytes \(cache\); "):
        device.buffer(4096, "cache")
    with pytest.raises(DeviceError, match=r"cannot use 16384 bytes of memory in place \(slots\); "):
        device.wrap(reserve(limits.PAGE), "slots")


def test_machines_that_cannot_run_this(fake: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.configure(families=("MTLGPUFamilyApple6",))
    with pytest.raises(UnsupportedError, match=r"lacks SIMD-group matrices or unified memory, .* --backend cpu$"):
        Device()
    fake.configure(device=False)
    with pytest.raises(UnsupportedError, match=r"^this machine has no Metal device; run with --backend cpu$"):
        Device()
    monkeypatch.setitem(sys.modules, "Metal", None)
    with pytest.raises(UnsupportedError, match=r"^the Metal backend needs .*; or run with --backend cpu$"):
        Device()


def test_a_refused_source_is_shown_with_its_line(
    gpu: ModuleType | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for path in sources.FOLDER.iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    header = (tmp_path / "numbers.h").read_text().replace("precise::exp(-x)", "undeclared(-x)")
    (tmp_path / "numbers.h").write_text(header)
    monkeypatch.setattr(sources, "FOLDER", tmp_path)
    line = next(i for i, text in enumerate(header.splitlines(), 1) if "undeclared" in text)
    with pytest.raises(UnsupportedError) as caught:
        Kernels(Device()).of(plain("norms.metal"))
    wanted = (
        rf"refuses norms\.metal: numbers\.h:{line}: use of undeclared identifier 'undeclared' in `inline float .*`$"
    )
    assert re.search(wanted, str(caught.value))


def test_kernels_that_are_not_there_or_too_large(gpu: ModuleType | None) -> None:
    device = Device()
    library = device.library(plain("combine.metal").source, "combine.metal")
    with pytest.raises(UnsupportedError, match=r"^there is no kernel absent of combine\.metal$"):
        library.pipeline("absent", 32)
    with pytest.raises(UnsupportedError, match=r"at most 1024 threads and SIMD groups of 32; it needs 2048 and 32$"):
        library.pipeline("combine", 2048)
    assert library.pipeline("combine", 1024).threads == 1024


def test_devices_with_other_simd_groups(fake: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SIMD_WIDTH", 16)
    with pytest.raises(UnsupportedError, match=r"threads and SIMD groups of 16; it needs 256 and 32$"):
        Kernels(Device()).of(plain("combine.metal"))


def test_infinities_stay_what_they_are(fake: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metal's default is fast-math; the stand-in computes the same either way, so what it is asked for is looked at."""
    import Metal

    asked: list[bool] = []
    monkeypatch.setattr(Metal.MTLCompileOptions, "setFastMathEnabled_", lambda _, enabled: asked.append(enabled))
    Device().library(plain("norms.metal").source, "norms.metal")
    assert asked == [False]


def test_builds_are_compiled_once(gpu: ModuleType | None) -> None:
    kernels, build = Kernels(Device()), plain("sampling.metal")
    assert kernels.of(build) is kernels.of(Build.of("sampling.metal", {}))
    assert set(kernels.of(build)) == {"top_k"}
