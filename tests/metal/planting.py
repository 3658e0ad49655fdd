"""What planted faults of hosts have in common; planted_calls.py and planted_runs.py have the faults themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from metal import limits
from metal.hosting import Host

from moepack.runtime.arena import reserve

Faulty = Callable[[Host], None]


@dataclass(frozen=True)
class Planted:
    """`run` has a fault of a class, which `sentence` (a pattern) names; `checked` needs the checker of kernels."""

    kind: str
    sentence: str
    run: Faulty
    checked: bool = False


PLANTED: list[Planted] = []


def planted(kind: str, sentence: str, *, checked: bool = False) -> Callable[[Faulty], Faulty]:
    def add(run: Faulty) -> Faulty:
        PLANTED.append(Planted(kind, sentence, run, checked))
        return run

    return add


def pages(count: int) -> np.ndarray:
    """Memory that begins at a page of the device, which is four of this machine's."""
    return reserve(count * limits.PAGE)


def wrap(host: Host, memory: Any, length: int) -> Any:
    wrapped = host.device.newBufferWithBytesNoCopy_length_options_deallocator_(memory, length, 0, None)
    wrapped.setLabel_("wrapped")
    return wrapped
