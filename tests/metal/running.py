"""Runs one of our kernels on numpy arrays, in several orders of its threads, and once more under the checker.

Whatever the order, every bit of what a kernel writes has to be the same; the checker must find nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from metal.msl.launch import Binding, Grid, Order, launch
from metal.msl.program import Mode, Program

from moepack.runtime.backends.metal.sources import library_source

THREADS = 256
ORDERS = (Order.FORWARD, Order.REVERSE, Order(7))

Size = tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """A kernel of a file of ours, specialised by macros; `source`, if given, is compiled in place of the file."""

    file: str
    name: str
    macros: Mapping[str, object] = field(default_factory=dict)
    source: str = ""

    def __call__(
        self, groups: Size, *arguments: np.ndarray | bytes, threads: int = THREADS, check: bool = True
    ) -> list[np.ndarray]:
        """The writable arrays of the arguments, in their order, as the kernel leaves them; those given stay."""
        first, *others = [self._run(Mode.FAST, groups, arguments, threads, order) for order in ORDERS]
        if check:
            others.append(self._run(Mode.CHECKED, groups, arguments, threads, Order.FORWARD))
        for other in others:
            for one, same in zip(first, other, strict=True):
                assert one.tobytes() == same.tobytes(), f"{self.name}: the result depends on the order of threads"
        return first

    def _run(
        self, mode: Mode, groups: Size, arguments: tuple[np.ndarray | bytes, ...], threads: int, order: Order
    ) -> list[np.ndarray]:
        program = compiled(self.source or library_source(self.file, {k: str(v) for k, v in self.macros.items()}), mode)
        written = {a.index for a in program.kernels[self.name].arguments if a.kind == "buffer" and a.writable}
        arrays = [np.frombuffer(a, np.uint8) if isinstance(a, bytes) else a for a in arguments]
        arrays = [array.copy() if i in written else array for i, array in enumerate(arrays)]
        bindings = [Binding(i, array.ctypes.data, array.nbytes) for i, array in enumerate(arrays)]
        grid = Grid(threadgroups=(*groups, 1, 1)[:3], threads_per_threadgroup=(threads, 1, 1))
        faults = launch(program, self.name, grid, bindings, {}, order, workers=1)
        assert not faults, f"{self.name}: {faults[0]}"
        return [array for i, array in enumerate(arrays) if i in written]


@cache
def compiled(source: str, mode: Mode) -> Program:
    return Program.compile(source, {}, mode)


def ceil_div(count: int, by: int) -> int:
    return -(-count // by)


def close(got: np.ndarray, wanted: np.ndarray, tolerance: float = 2e-6) -> bool:
    """Within `tolerance` of the largest value: float32 sums of a few hundred terms."""
    return bool(np.abs(got - wanted.reshape(got.shape)).max() <= tolerance * max(1.0, np.abs(wanted).max()))
