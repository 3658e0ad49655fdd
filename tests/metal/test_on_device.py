"""What runs kernels on a real device, under the stand-in: the same results as msl's, and the same signatures."""

from types import ModuleType

import numpy as np
import pytest
from matrices import floats
from metal.builds import every_build
from metal.msl.program import Mode
from metal.on_device import Launcher, writable
from metal.running import compiled, kernel

from moepack.runtime.backends.metal.device import Device
from moepack.runtime.backends.metal.launches import count, threads_grid
from moepack.runtime.backends.metal.library import KERNELS, Build, plain

FIRST = list({build.file: build for build in reversed(list(every_build()))}.values())  # a build of each file


@pytest.mark.parametrize("build", FIRST, ids=lambda build: build.file)
def test_the_source_s_words_say_what_a_kernel_writes(fake: ModuleType, build: Build) -> None:
    program = compiled(build.source, Mode.FAST)
    for name in KERNELS[build.file]:
        arguments = program.kernels[name].arguments
        assert writable(build.source, name) == {a.index for a in arguments if a.kind == "buffer" and a.writable}


@pytest.mark.parametrize("size", [1, 300, 2000])
def test_results_are_those_of_msl(fake: ModuleType, size: int) -> None:
    """By value, in a buffer because it is long, and in place; what was given stays."""
    random = np.random.default_rng(size)
    gate, up, out = floats(random, size), floats(random, size), np.zeros(size, np.float32)
    tested = kernel(plain("combine.metal"), "swiglu")
    (got,) = Launcher(Device()).run(
        tested.name, tested.source, tested.threads, threads_grid(size), [gate, up.tobytes(), out, count(size)]
    )
    (wanted,) = tested(threads_grid(size), gate, up, out, count(size))
    assert np.array_equal(got, wanted)
    assert got.any()
    assert not out.any()
