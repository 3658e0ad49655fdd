"""Runs a kernel of a program on memory of this process, and says what went wrong.

A launch ends at the first fault after which it cannot go on; races and reads of threadgroup memory that nobody wrote
are collected, each line once. Programs that are not checked only find out that threads have parted, or that there is
not enough threadgroup memory or stack.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from ..limits import MAX_THREADS, THREADGROUP_MEMORY
from . import native
from .program import Mode, Program, Signature

Size = tuple[int, int, int]
# By the numbers that native/interface.h gives them.
FAULTS = (
    "divergence",
    "threadgroup-memory",
    "stack",
    "race",
    "out-of-bounds",
    "const-write",
    "constant-misuse",
    "uninitialised",
)
SPACES = {"device": 1, "constant": 2, "threadgroup": 3}


class LaunchError(ValueError):
    """The launch itself is impossible; nothing has run."""


@dataclass(frozen=True)
class Grid:
    """So many threadgroups of so many threads; or so many threads exactly, the last threadgroups being smaller."""

    threadgroups: Size
    threads_per_threadgroup: Size
    threads: Size | None = None

    @classmethod
    def exact(cls, threads: Size, threads_per_threadgroup: Size) -> Self:
        groups = tuple(-(-all_ // each) for all_, each in zip(threads, threads_per_threadgroup, strict=True))
        return cls(groups, threads_per_threadgroup, threads)

    def all_threads(self) -> Size:
        full = tuple(a * b for a, b in zip(self.threadgroups, self.threads_per_threadgroup, strict=True))
        return self.threads or full


@dataclass(frozen=True)
class Binding:
    """Memory at the index of a [[buffer(n)]]."""

    index: int
    address: int
    length: int


@dataclass(frozen=True)
class Order:
    """In which order lanes, SIMD groups and threadgroups have their turns: a seed is a random one, always the same."""

    seed: int
    FORWARD: ClassVar["Order"]
    REVERSE: ClassVar["Order"]


Order.FORWARD, Order.REVERSE = Order(-1), Order(-2)


@dataclass(frozen=True)
class Fault:
    kind: str
    kernel: str
    file: str
    line: int
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.file else ""
        return f"{where}kernel {self.kernel}: {self.message}"


def launch(
    program: Program,
    kernel: str,
    grid: Grid,
    bindings: Sequence[Binding] = (),
    threadgroup_lengths: Mapping[int, int] | None = None,
    order: Order = Order.FORWARD,
    workers: int | None = None,
) -> list[Fault]:
    """Empty if all went well. `workers` is how many OS threads run threadgroups; a checked program has one."""
    signature = program.kernels.get(kernel)
    if signature is None:
        raise LaunchError(f"there is no kernel {kernel}; there are {', '.join(program.kernels)}")
    _refuse_impossible(kernel, signature, grid)
    faults = (native.Fault * native.MOST_FAULTS)()
    request = native.Launch(entry=signature.entry, order=order.seed, threadgroup_limit=THREADGROUP_MEMORY)
    request.faults, request.capacity = faults, native.MOST_FAULTS
    request.checked, request.workers = program.mode is Mode.CHECKED, workers or os.cpu_count() or 1
    request.constants, request.constant_count = program.constants
    _set_grid(request, grid)
    _bind(request, kernel, signature, bindings, threadgroup_lengths or {})
    native.runtime().msl_launch(request)
    return [_fault(kernel, faults[i]) for i in range(request.found)]


def _refuse_impossible(kernel: str, signature: Signature, grid: Grid) -> None:
    x, y, z = grid.threads_per_threadgroup
    most = min(MAX_THREADS, signature.max_threads)
    if min(*grid.threadgroups, x, y, z) < 1:
        raise LaunchError(f"the grid of kernel {kernel} is empty")
    if x * y * z > most:
        raise LaunchError(
            f"{x * y * z} threads per threadgroup are more than kernel {kernel} can have, which is {most}"
        )


def _set_grid(request: native.Launch, grid: Grid) -> None:
    request.threadgroups = native.Three(*grid.threadgroups)
    request.threads_per_threadgroup = native.Three(*grid.threads_per_threadgroup)
    request.threads = native.Three(*grid.all_threads())


def _bind(
    request: native.Launch,
    kernel: str,
    signature: Signature,
    bindings: Sequence[Binding],
    threadgroup_lengths: Mapping[int, int],
) -> None:
    given = {binding.index: binding for binding in bindings}
    for argument in signature.arguments:
        if argument.kind == "threadgroup":
            if threadgroup_lengths.get(argument.index, 0) < 1:
                raise LaunchError(
                    f"kernel {kernel} has no length for [[threadgroup({argument.index})]] {argument.name}"
                )
            request.threadgroup_lengths[argument.index] = threadgroup_lengths[argument.index]
        elif argument.index not in given:
            raise LaunchError(f"kernel {kernel} has nothing bound to [[buffer({argument.index})]] {argument.name}")
        else:
            of = given[argument.index]
            request.bindings[argument.index] = native.Binding(
                of.address, of.length, SPACES[argument.space], argument.writable
            )


def _fault(kernel: str, fault: native.Fault) -> Fault:
    return Fault(FAULTS[fault.kind], kernel, fault.file.decode(), fault.line, fault.message.decode())
