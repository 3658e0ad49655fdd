"""How the stand-in behaves: one frozen value, replaced as a whole by `configure` or read from the environment.

MOEPACK_FAKE_METAL="mode=lazy,order=7,checked=1" sets the same names for a process that a test starts.
"""

import os
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from metal import limits

VARIABLE = "MOEPACK_FAKE_METAL"


class Mode(Enum):
    """When committed work runs."""

    IN_ORDER = "in-order"  # at once: commit, or a signal by the host, returns when the GPU can go no further
    ASYNC = "async"  # in its own time, beside the host
    LAZY = "lazy"  # not before somebody waits, and no further than that


@dataclass(frozen=True)
class Settings:
    """`order`: 0 is first to last, 1 last to first, any other a seed; of threads, and of work that may overlap."""

    mode: Mode = Mode.ASYNC
    order: int = 0
    checked: bool = False  # run kernels under the checker
    workers: int = os.cpu_count() or 1
    patience: float = 60.0  # seconds after which a wait without a timeout is taken to be for ever
    over_retain: bool = False  # PyObjC before 12.2.3
    device: bool = True
    families: tuple[str, ...] = limits.FAMILIES
    max_buffer_length: int = limits.MAX_BUFFER_LENGTH
    working_set: int = limits.WORKING_SET
    memory: int = limits.MEMORY


ORDERS = {"forward": 0, "reverse": 1}


def parsed(text: str) -> dict[str, Any]:
    """Settings as the environment states them."""
    pairs = dict(part.split("=", 1) for part in text.split(",") if part)
    return {name: _value(name, value) for name, value in pairs.items()}


def _value(name: str, text: str) -> Any:
    default = getattr(Settings(), name)
    if isinstance(default, Mode):
        return Mode(text)
    if isinstance(default, bool):
        return text not in ("", "0", "false")
    if isinstance(default, tuple):
        return tuple(text.split("+"))
    return ORDERS[text] if name == "order" and text in ORDERS else type(default)(text)


def configure(**changes: Any) -> Settings:
    """Change some settings; the others stay. `mode` and `order` may be given by name."""
    global _current
    unknown = set(changes) - {field.name for field in fields(Settings)}
    if unknown:
        raise ValueError(f"no such setting: {', '.join(sorted(unknown))}")
    if isinstance(changes.get("mode"), str):
        changes["mode"] = Mode(changes["mode"])
    if isinstance(changes.get("order"), str):
        changes["order"] = ORDERS[changes["order"]]
    _current = replace(_current, **changes)
    return _current


def current() -> Settings:
    return _current


def restore() -> None:
    """Back to what the environment says."""
    global _current
    _current = Settings(**parsed(os.environ.get(VARIABLE, "")))


_current = Settings()
restore()
