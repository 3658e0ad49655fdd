"""What tests can let fail: command buffers, allocations, the device, sources; and the settings as such."""

import json
import subprocess
import sys
from types import ModuleType

import Metal
import pytest
from metal import limits, standin
from metal.hosting import Host, floats


@pytest.mark.parametrize("mode", ["in-order", "async", "lazy"])
def test_a_command_buffer_fails_midway(fake: ModuleType, mode: str) -> None:
    fake.configure(mode=mode)
    host = Host()
    x, y, event = host.buffer("x"), host.buffer("y"), host.device.newSharedEvent()
    fake.fail_command_buffer(at=2, after=3)
    ended = []
    for label in ("first", "second", "third"):
        with host.commands(label) as commands:
            host.increment(commands, x, times=2)
            host.increment(commands, y, times=2)
            commands.encodeSignalEvent_value_(event, event.signaledValue() + 1)
        commands.waitUntilCompleted()
        ended.append(commands)
    completed, error = Metal.MTLCommandBufferStatusCompleted, Metal.MTLCommandBufferStatusError
    assert [commands.status() for commands in ended] == [completed, error, completed]
    assert [commands.error() is None for commands in ended] == [True, False, True]
    assert (floats(x)[0], floats(y)[0]) == (6, 5)
    assert event.signaledValue() == 2  # the second was never signalled
    assert "Timeout" in ended[1].error().localizedDescription()
    assert ended[1].error().domain() == "MTLCommandBufferErrorDomain"
    assert ended[1].error().code() == Metal.MTLCommandBufferErrorTimeout


def test_a_failure_may_have_any_code_and_come_after_everything(fake: ModuleType) -> None:
    host = Host()
    x = host.buffer("x")
    fake.fail_command_buffer(after=99, sentence="Insufficient Memory", code=Metal.MTLCommandBufferErrorOutOfMemory)
    with host.commands() as commands:
        host.increment(commands, x)
    commands.waitUntilCompleted()
    assert commands.status() == Metal.MTLCommandBufferStatusError
    assert str(commands.error()) == "Error Domain=MTLCommandBufferErrorDomain Code=8 'Insufficient Memory'"


def test_allocations_are_refused(fake: ModuleType) -> None:
    device = Metal.MTLCreateSystemDefaultDevice()
    fake.refuse_allocations(after=1, count=2)
    made = [device.newBufferWithLength_options_(4, 0) is not None for _ in range(4)]
    assert made == [True, False, False, True]


def test_memory_ends(fake: ModuleType) -> None:
    fake.configure(memory=3 * limits.PAGE)
    device = Metal.MTLCreateSystemDefaultDevice()
    first = device.newBufferWithLength_options_(limits.PAGE + 1, 0)
    assert device.newBufferWithLength_options_(limits.PAGE + 1, 0) is None
    assert device.currentAllocatedSize() == 2 * limits.PAGE
    del first
    assert device.newBufferWithLength_options_(limits.PAGE + 1, 0) is not None


def test_there_may_be_no_device(fake: ModuleType) -> None:
    fake.configure(device=False)
    assert Metal.MTLCreateSystemDefaultDevice() is None
    assert list(Metal.MTLCopyAllDevices()) == []


def test_the_device_may_be_old_or_small(fake: ModuleType) -> None:
    device = Metal.MTLCreateSystemDefaultDevice()
    assert device.supportsFamily_(Metal.MTLGPUFamilyApple7)
    assert not device.supportsFamily_(Metal.MTLGPUFamilyMetal4)
    fake.configure(families=("MTLGPUFamilyApple6",), max_buffer_length=1 << 20, working_set=1 << 21)
    assert device.supportsFamily_(Metal.MTLGPUFamilyApple6)
    assert not device.supportsFamily_(Metal.MTLGPUFamilyApple7)
    assert (device.maxBufferLength(), device.recommendedMaxWorkingSetSize()) == (1 << 20, 1 << 21)


BROKEN = """#include <metal_stdlib>
using namespace metal;
kernel void broken(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  x[i] = undeclared;
}
"""


def test_sources_that_do_not_compile_give_the_error_in_the_compilers_form(fake: ModuleType) -> None:
    device = Metal.MTLCreateSystemDefaultDevice()
    library, error = device.newLibraryWithSource_options_error_(BROKEN, Metal.MTLCompileOptions.alloc().init(), None)
    assert library is None
    assert error.domain() == "MTLLibraryErrorDomain"
    assert error.code() == Metal.MTLLibraryErrorCompileFailure
    said = error.localizedDescription()
    assert "program_source:4:" in said
    assert "error: use of undeclared identifier 'undeclared'" in said


def test_macros_and_missing_functions(fake: ModuleType) -> None:
    device, options = Metal.MTLCreateSystemDefaultDevice(), Metal.MTLCompileOptions.alloc().init()
    options.setPreprocessorMacros_({"undeclared": 2.0})
    options.setLanguageVersion_(Metal.MTLLanguageVersion3_1)
    options.setMathMode_(Metal.MTLMathModeSafe)
    library, error = device.newLibraryWithSource_options_error_(BROKEN, options, None)
    assert error is None
    assert list(library.functionNames()) == ["broken"]
    assert library.newFunctionWithName_("absent") is None


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda device: device.newBufferWithLength_options_(4),
            "newBufferWithLength:options: takes 2 arguments, not 1",
        ),
        (lambda device: device.newBufferWithLength_options_(4.0, 0), "argument 0 has to be an integer from 0"),
        (lambda device: device.newBufferWithLength_options_(-1, 0), "argument 0 has to be an integer from 0"),
        (lambda device: device.newBufferWithBytes_length_options_(b"abc", 4, 0), "4 were announced, but only 3"),
        (lambda device: device.newLibraryWithSource_options_error_("", None, []), "argument 2 has to be None"),
        (lambda device: device.supportsFamily_("MTLGPUFamilyApple7"), "argument 0 has to be an integer"),
    ],
)
def test_calls_that_the_bridge_would_refuse(fake: ModuleType, call: object, sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        call(Metal.MTLCreateSystemDefaultDevice())  # type: ignore[operator]


def test_settings_of_another_process_come_from_the_environment() -> None:
    code = (
        "import json, Metal; s = Metal.fake.current();"
        "print(json.dumps([s.mode.value, s.order, s.checked, s.memory, s.families]))"
    )
    settings = "mode=lazy,order=reverse,checked=1,memory=1000,families=MTLGPUFamilyApple7+MTLGPUFamilyMetal3"
    env = standin.environment(settings)
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == ["lazy", 1, True, 1000, ["MTLGPUFamilyApple7", "MTLGPUFamilyMetal3"]]


def test_settings_that_are_none_are_refused(fake: ModuleType) -> None:
    with pytest.raises(ValueError, match="no such setting: modus"):
        fake.configure(modus="lazy")
