"""The runtime that executes compiled programs: built once, loaded once. The structs are those of native/launch.h."""

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from .compiler import HERE, find_compiler

MAX_INDEX = 31
MOST_FAULTS = 32


class Argument(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p)] + [
        (name, ctypes.c_uint) for name in ("index", "memory", "size", "alignment", "writable")
    ]


class Kernel(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("entry", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(Argument)),
        ("argument_count", ctypes.c_uint),
        ("max_threads", ctypes.c_uint),
    ]


class Fault(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_uint),
        ("line", ctypes.c_uint),
        ("file", ctypes.c_char * 128),
        ("message", ctypes.c_char * 256),
    ]


class Binding(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_void_p),
        ("length", ctypes.c_ulong),
        ("memory", ctypes.c_uint),
        ("writable", ctypes.c_uint),
    ]


Three = ctypes.c_uint * 3


class Launch(ctypes.Structure):
    _fields_ = [
        ("entry", ctypes.c_void_p),
        ("threadgroups", Three),
        ("threads_per_threadgroup", Three),
        ("threads", Three),
        ("workers", ctypes.c_uint),
        ("checked", ctypes.c_uint),
        ("order", ctypes.c_long),
        ("threadgroup_limit", ctypes.c_uint),
        ("threadgroup_lengths", ctypes.c_uint * MAX_INDEX),
        ("bindings", Binding * MAX_INDEX),
        ("constants", ctypes.c_void_p),
        ("constant_count", ctypes.c_uint),
        ("faults", ctypes.POINTER(Fault)),
        ("capacity", ctypes.c_uint),
        ("found", ctypes.c_uint),
    ]


def cache_directory() -> Path:
    """XDG_CACHE_HOME's, if that is set; else the repository's build directory."""
    home = os.environ.get("XDG_CACHE_HOME")
    return Path(home) / "moepack-msl" if home else HERE.parents[2] / "build" / "msl"


@cache
def machine() -> str:
    """What -march=native depends on."""
    try:
        facts = Path("/proc/cpuinfo").read_text()
    except OSError:
        facts = ""
    return "\n".join(
        sorted({line for line in facts.splitlines() if line.startswith(("flags", "Features", "model name"))})
    )


@cache
def tools_digest(*patterns: str) -> str:
    """Of the compiler, the machine, the limits, and files of ours."""
    digest = hashlib.sha256(f"{find_compiler()}\n{machine()}\n".encode())
    for path in [HERE.parent / "limits.py", *(path for each in patterns for path in sorted(HERE.glob(each)))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def built(name: str, build: Callable[[Path], None]) -> Path:
    """A file of that name in the cache: made beside its place and then moved there, whoever else is doing so too."""
    path = cache_directory() / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            build(Path(folder) / path.name)
            (Path(folder) / path.name).replace(path)
    return path


@cache
def runtime() -> ctypes.CDLL:
    """Loaded for everybody, as programs take what they call from it."""
    sources = sorted((HERE / "native").glob("*.cpp"))
    path = built(f"runtime-{tools_digest('native/*')}.so", lambda to: find_compiler().build_runtime(sources, to))
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.msl_launch.argtypes = [ctypes.POINTER(Launch)]
    library.msl_launch.restype = None
    return library
