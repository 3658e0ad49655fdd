"""A .metal source, compiled: its kernels and their signatures. Whatever has been compiled is kept on disk."""

import ctypes
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..limits import MAX_THREADS
from . import ir
from .compiler import RejectedError, find_compiler
from .diagnostics import CompileError, compile_error, from_compiler, source_lines
from .entries import entries
from .native import Kernel, built, runtime, tools_digest
from .tokens import MslError
from .translate import translate

__all__ = ["Argument", "CompileError", "Mode", "Program", "Signature"]

UNNAMED = "program.metal"  # what a source is called that does not say so by #line
SPACES = {1: "device", 2: "constant", 3: "threadgroup"}


class Mode(Enum):
    FAST = "fast"
    CHECKED = "checked"  # every access to memory that threads share is judged


@dataclass(frozen=True)
class Argument:
    """What a kernel wants at an index: `size` and `alignment` are those of one element."""

    index: int
    kind: str  # buffer or threadgroup
    name: str
    size: int
    alignment: int
    space: str  # device, constant or threadgroup
    writable: bool


@dataclass(frozen=True)
class Signature:
    arguments: tuple[Argument, ...]
    max_threads: int
    entry: int  # the address of its code


@dataclass(frozen=True)
class Program:
    kernels: Mapping[str, Signature]
    mode: Mode
    constants: tuple[int, int]  # the address and length of the table of the program's constants; 0, 0 if not checked

    @classmethod
    def compile(cls, source: str, macros: Mapping[str, str], mode: Mode) -> "Program":
        """Raises CompileError, which names the line of the source that is to blame."""
        defines = [f"-D{name}={value}" for name, value in sorted(macros.items())]
        key = hashlib.sha256(
            "\0".join([tools_digest("*.py", "shim/*", "native/interface.h"), mode.value, *defines, source]).encode()
        ).hexdigest()
        runtime()
        return load(built(f"{key[:32]}.so", lambda to: build(source, defines, mode, to)), mode)


def build(source: str, defines: list[str], mode: Mode, to: Path) -> None:
    lines = source_lines(source, UNNAMED)
    try:
        module = read_module(source, defines, mode)
        text = ir.checked(module) if mode is Mode.CHECKED else "\n".join(module.lines)
    except MslError as problem:
        raise compile_error(problem.message, problem.place, lines) from None
    except RejectedError as rejected:
        raise from_compiler(str(rejected), lines) from None
    find_compiler().link(text, to, "-O1" if mode is Mode.CHECKED else "-O3")


def read_module(source: str, defines: list[str], mode: Mode) -> ir.Module:
    compiler = find_compiler()
    plain = compiler.preprocess(f'#line 1 "{UNNAMED}"\n{source}', defines)
    translation = translate(plain, UNNAMED)
    code = f'#line 1 "{UNNAMED}"\n{translation.code}{entries(translation, MAX_THREADS)}'
    module = ir.Module(compiler.to_ir(code, ["-DMSL_CHECKED"] if mode is Mode.CHECKED else []))
    ir.refuse_what_metal_refuses(module)
    return module


def load(path: Path, mode: Mode) -> Program:
    library = ctypes.CDLL(str(path))
    count = ctypes.c_uint.in_dll(library, "msl_kernel_count").value
    table = (Kernel * count).in_dll(library, "msl_kernels")
    return Program({row.name.decode(): signature(row) for row in table}, mode, constants_of(library, mode))


def signature(row: Kernel) -> Signature:
    arguments = [row.arguments[i] for i in range(row.argument_count)]
    read = tuple(
        Argument(
            each.index,
            "threadgroup" if SPACES[each.memory] == "threadgroup" else "buffer",
            each.name.decode(),
            each.size,
            each.alignment,
            SPACES[each.memory],
            bool(each.writable),
        )
        for each in arguments
    )
    return Signature(read, row.max_threads, row.entry)


def constants_of(library: ctypes.CDLL, mode: Mode) -> tuple[int, int]:
    if mode is not Mode.CHECKED:
        return 0, 0
    count = ctypes.c_uint.in_dll(library, "msl_constant_count").value
    return ctypes.addressof(ctypes.c_char.in_dll(library, "msl_constants")), count
