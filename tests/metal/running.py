"""Runs one of our kernels on numpy arrays, in several orders of its threads, and once more under the checker.

Whatever the order, every bit of what a kernel writes has to be the same; the checker must find nothing. Where the
stand-in does not run, the kernel runs on the machine's own device, twice.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from metal import on_device, standin
from metal.msl.launch import Binding, Grid, Order, launch
from metal.msl.program import Mode, Program

from moepack.runtime.backends.metal.device import Size
from moepack.runtime.backends.metal.library import KERNELS, Build

ORDERS = (Order.FORWARD, Order.REVERSE, Order(7))


@dataclass(frozen=True)
class Kernel:
    """A kernel of some source, with so many threads in a threadgroup."""

    name: str
    source: str
    threads: int

    def __call__(self, grid: Size, *arguments: np.ndarray | bytes, check: bool = True) -> list[np.ndarray]:
        """The writable arrays of the arguments, in their order, as the kernel leaves them; those given stay."""
        first, *others = self._results(grid, arguments, check=check) if standin.RUNS else self._real(grid, arguments)
        for other in others:
            for one, same in zip(first, other, strict=True):
                assert one.tobytes() == same.tobytes(), f"{self.name}: the result depends on the order of threads"
        return first

    def _results(self, grid: Size, arguments: tuple[np.ndarray | bytes, ...], *, check: bool) -> list[list[np.ndarray]]:
        results = [self._run(Mode.FAST, grid, arguments, order) for order in ORDERS]
        return [*results, self._run(Mode.CHECKED, grid, arguments, Order.FORWARD)] if check else results

    def _real(self, grid: Size, arguments: tuple[np.ndarray | bytes, ...]) -> list[list[np.ndarray]]:
        launcher = on_device.opened()
        return [launcher.run(self.name, self.source, self.threads, grid, arguments) for _ in range(2)]

    def _run(self, mode: Mode, grid: Size, arguments: tuple[np.ndarray | bytes, ...], order: Order) -> list[np.ndarray]:
        program = compiled(self.source, mode)
        written = {a.index for a in program.kernels[self.name].arguments if a.kind == "buffer" and a.writable}
        arrays = [np.frombuffer(a, np.uint8) if isinstance(a, bytes) else a for a in arguments]
        arrays = [array.copy() if i in written else array for i, array in enumerate(arrays)]
        bindings = [Binding(i, array.ctypes.data, array.nbytes) for i, array in enumerate(arrays)]
        threads = Grid(threadgroups=grid, threads_per_threadgroup=(self.threads, 1, 1))
        faults = launch(program, self.name, threads, bindings, {}, order, workers=1)
        assert not faults, f"{self.name}: {faults[0]}"
        return [array for i, array in enumerate(arrays) if i in written]


def kernel(build: Build, name: str) -> Kernel:
    """One of our kernels."""
    return Kernel(name, build.source, KERNELS[build.file][name])


@cache
def compiled(source: str, mode: Mode) -> Program:
    return Program.compile(source, {}, mode)
