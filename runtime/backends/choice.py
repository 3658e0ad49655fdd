"""Which backend runs a pack on this machine: the one that was asked for, and no other in its place."""

import sys
from typing import Literal, TypeAlias

from ...layout.reader import Pack
from ...manifests import schema
from ...manifests.errors import UsageError
from ..memory import HostNeeds, MemoryPlan, Needs
from .base import Backend
from .cpu import CpuBackend
from .metal.backend import MetalBackend
from .metal.device import Device
from .metal.needs import DeviceNeeds, Extent

MOST_THREADS = 1024  # of the native pool
Kind: TypeAlias = Literal["auto", "cpu", "metal"]


def kind_here(asked: Kind) -> Kind:
    """What `auto` means: Metal on a Mac, the CPU elsewhere."""
    if asked != "auto":
        return asked
    return "metal" if sys.platform == "darwin" else "cpu"


def needs_of(asked: Kind, pack: Pack, experts_per_token: int) -> Needs:
    """What a pack needs on that backend. Raises UnsupportedError if this machine cannot run it."""
    if kind_here(asked) == "metal":
        return DeviceNeeds(pack, Device(), experts_per_token)
    return HostNeeds(pack)


def open_backend(
    asked: Kind, model: schema.Model, plan: MemoryPlan, experts_per_token: int, threads: int, *, exact: bool
) -> Backend:
    """That backend, with room for what was planned. Raises as `needs_of`, as `open_cpu` and as MetalBackend do."""
    if kind_here(asked) == "metal":
        return MetalBackend(Device(), model, Extent(plan.context, plan.chunk, experts_per_token))
    return open_cpu(threads, exact=exact)


def open_cpu(threads: int, *, exact: bool = True) -> CpuBackend:
    """The CPU backend; `exact`: activations are never rounded.

    Raises UsageError for a number of threads or an instruction set that this machine has not.
    """
    check_threads(threads)
    try:
        return CpuBackend(threads, exact=exact)
    except RuntimeError as error:  # MOEPACK_ISA names no instruction set of this machine
        raise UsageError(f"{error}; unset it to use the best one") from error


def check_threads(threads: int) -> None:
    """Raises UsageError for more than the native pool can have, or none."""
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"{threads} threads are outside 1 to {MOST_THREADS}")
