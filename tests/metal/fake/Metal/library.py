"""Libraries, functions and pipelines: Metal source, compiled for the CPU by `metal.msl`, and run by it."""

import math
from collections.abc import Mapping, Sequence

from metal import limits
from metal.msl.launch import Binding, Grid, Order, Size, launch
from metal.msl.program import UNNAMED, Argument, CompileError, Mode, Program

from . import settings
from .accounts import account
from .bridge import Labelled, NSObject, over_retained, selector
from .constants import ENUMS
from .faults import NSError, need
from .work import Bound

ORDERS = {0: Order.FORWARD, 1: Order.REVERSE}


class MTLCompileOptions(NSObject):
    """Macros are what matters here; the language version and the kind of arithmetic are taken and change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._macros: dict[str, str] = {}

    @selector("@")
    def setPreprocessorMacros_(self, macros: Mapping[str, str | int | float]) -> None:
        self._macros = {str(name): str(value) for name, value in macros.items()}

    @selector("Q")
    def setLanguageVersion_(self, version: int) -> None:
        need(version in _values("MTLLanguageVersion"), f"{version} is not a version of the language")

    @selector("q")
    def setMathMode_(self, mode: int) -> None:
        need(mode in _values("MTLMathMode"), f"{mode} is not a mode of arithmetic")

    @selector("Z")
    def setFastMathEnabled_(self, enabled: bool) -> None:
        """Taken, and without effect: the CPU's arithmetic is IEEE's either way."""


def _values(prefix: str) -> list[int]:
    return [value for name, value in ENUMS.items() if name.startswith(prefix)]


class MTLLibrary(Labelled):
    """Compiled source. Under the checker it is compiled once more, the first time that a kernel runs there."""

    def __init__(self, source: str, macros: Mapping[str, str]) -> None:
        super().__init__()
        self._source, self._macros = source, macros
        self._programs: dict[Mode, Program] = {}
        self._program()

    @selector(gives="@")
    def functionNames(self) -> list[str]:
        return list(self._program().kernels)

    @selector("@", gives="@")
    def newFunctionWithName_(self, name: str) -> "MTLFunction | None":
        if name not in self._program().kernels:
            return None
        function: MTLFunction = over_retained(MTLFunction(self, name))
        function._allocation = account.allocated("function")
        function._allocation.label = name
        return function

    def _program(self) -> Program:
        mode = Mode.CHECKED if settings.current().checked else Mode.FAST
        if mode not in self._programs:
            self._programs[mode] = Program.compile(self._source, self._macros, mode)
        return self._programs[mode]


def compiled(source: str, options: MTLCompileOptions | None) -> tuple[MTLLibrary | None, NSError | None]:
    """A library, or the error that Metal's compiler would give, in its form; columns are not known, and always 1."""
    try:
        return MTLLibrary(source, options._macros if options else {}), None
    except CompileError as error:
        file = "program_source" if error.file == UNNAMED else error.file
        sentence = f"{file}:{error.line}:1: error: {error.message}\n{error.text}\n"
        return None, NSError("MTLLibraryErrorDomain", ENUMS["MTLLibraryErrorCompileFailure"], sentence)


class MTLFunction(Labelled):
    """A kernel by its name."""

    def __init__(self, library: MTLLibrary, kernel: str) -> None:
        super().__init__()
        self._library, self._kernel = library, kernel

    @selector(gives="@")
    def name(self) -> str:
        return self._kernel


class MTLComputePipelineState(NSObject):
    """A kernel that can be launched."""

    def __init__(self, function: MTLFunction) -> None:
        super().__init__()
        self._library, self._kernel = function._library, function._kernel
        self._signature = self._library._program().kernels[self._kernel]
        self._buffers = [a for a in self._signature.arguments if a.kind == "buffer"]
        self._threadgroup = [a for a in self._signature.arguments if a.kind == "threadgroup"]

    @selector(gives="@")
    def label(self) -> str:
        return self._kernel

    @selector(gives="Q")
    def maxTotalThreadsPerThreadgroup(self) -> int:
        return int(self._signature.max_threads)

    @selector(gives="Q")
    def threadExecutionWidth(self) -> int:
        return limits.SIMD_WIDTH

    def _check_sizes(self, count: Sequence[int], group: Sequence[int]) -> None:
        need(min(*count, *group) > 0, f"{self._kernel}: a grid of {tuple(count)} by {tuple(group)} is empty")
        threads, most = math.prod(group), self._signature.max_threads
        need(threads <= most, f"{self._kernel}: {threads} threads per threadgroup are more than {most}")

    def _check_arguments(self, bound: Mapping[int, Bound], lengths: Mapping[int, int]) -> None:
        for argument in self._buffers:
            self._check_buffer(argument, bound.get(argument.index))
        for argument in self._threadgroup:
            length, name = lengths.get(argument.index, 0), self._argument(argument)
            need(length, f"{name} has no length of threadgroup memory")
            need(length >= argument.size, f"{name} has {length} bytes, and its type has {argument.size}")
        total = sum(lengths[argument.index] for argument in self._threadgroup)
        most = limits.THREADGROUP_MEMORY
        need(total <= most, f"{self._kernel}: {total} bytes of threadgroup memory are more than {most}")

    def _check_buffer(self, argument: Argument, bound: Bound | None) -> None:
        name = self._argument(argument)
        if bound is None:
            return need(False, f"{name} is not bound")
        need(bound.length >= argument.size, f"{name} has {bound.length} bytes, and its type has {argument.size}")
        aligned = bound.address % argument.alignment == 0
        return need(
            aligned, f"{name} is at an offset that is not a multiple of {argument.alignment}, as its type needs"
        )

    def _argument(self, argument: Argument) -> str:
        return f"{self._kernel}: {argument.kind} {argument.index} ({argument.name})"

    def _launch(self, grid: Grid, bound: Mapping[int, Bound], lengths: Mapping[int, int]) -> list[str]:
        """Run; give a sentence for each fault."""
        now = settings.current()
        bindings = [Binding(index, b.address, b.length) for index, b in bound.items()]
        order = ORDERS.get(now.order) or Order(now.order)
        program = self._library._program()
        faults = launch(program, self._kernel, grid, bindings, lengths, order, workers=now.workers)
        return [str(fault) for fault in faults]


def whole_grid(groups: Size, threads: Size) -> Grid:
    """Of whole threadgroups."""
    return Grid(groups, threads)


def exact_grid(threads: Size, group: Size) -> Grid:
    """Of so many threads exactly."""
    return Grid.exact(threads, group)
