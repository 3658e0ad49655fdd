"""What tests ask of the stand-in: how to behave, what to count, what to let fail, and what it found.

`configure` and the environment's MOEPACK_FAKE_METAL choose the behaviour (see settings.py); `reset` begins anew.
"""

import objc

from . import bridge, failures, settings
from .accounts import Counters, Step, account
from .constants import ENUMS
from .device import MTLDevice
from .failures import Failure, ordered
from .faults import MetalAssertion, NSError, Report, reports
from .gpu import gpu
from .settings import Mode, Settings, configure, current

__all__ = [
    "Counters",
    "MetalAssertion",
    "Mode",
    "NSError",
    "Report",
    "Settings",
    "Step",
    "check",
    "configure",
    "counters",
    "current",
    "default_device",
    "fail_command_buffer",
    "found",
    "outside_pools",
    "refuse_allocations",
    "reset",
    "trace",
]

_devices: list[MTLDevice] = []


def default_device() -> MTLDevice | None:
    """What MTLCreateSystemDefaultDevice gives: always the same device, or None where the settings say so."""
    if not settings.current().device:
        return None
    if not _devices:
        _devices.append(MTLDevice())
    return _devices[0]


def reset() -> None:
    """Drop all work, counts, findings and orders, and behave as the environment says."""
    gpu.reset()
    found()
    failures.forget()
    bridge.forget_objects()
    objc.forget_leaks()
    account.clear()
    _devices.clear()
    settings.restore()


def counters() -> Counters:
    """Counts so far; subtract an earlier one for those of a token."""
    return account.counters()


def trace() -> list[Step]:
    """What the GPU did so far, in its order."""
    return account.trace()


def outside_pools() -> dict[str, int]:
    """Objects made autoreleased where no pool was, per class: nothing will ever release them."""
    return dict(objc.outside_pools)


def found() -> list[Report]:
    """The faults found since this was last asked."""
    with gpu.lock:
        gpu.order.look()
    return reports.take()


def check() -> None:
    """Raise the first fault that was found, if any."""
    for report in found():
        raise MetalAssertion(f"{report.kind}: {report.sentence}")


def fail_command_buffer(
    at: int = 1,
    after: int = 0,
    sentence: str = "Caused GPU Timeout Error (00000002:kIOAccelCommandBufferCallbackErrorTimeout)",
    code: int = ENUMS["MTLCommandBufferErrorTimeout"],
) -> None:
    """Let the `at`-th command buffer to be committed from now end with an error after `after` of its commands."""
    ordered.failures += (Failure(at, after, sentence, code),)


def refuse_allocations(after: int = 0, count: int = 1) -> None:
    """Let `count` buffers be refused once `after` more have been granted: the device then returns None."""
    ordered.granted, ordered.refused = after, count
