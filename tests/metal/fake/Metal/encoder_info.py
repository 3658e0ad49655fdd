"""Which encoder of a command buffer failed: what Metal tells of it, to those who asked by a descriptor."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .bridge import NSObject, selector
from .constants import ENUMS
from .work import Pass

if TYPE_CHECKING:
    from .work import Item

COMPLETED, FAULTED, PENDING = (
    ENUMS[f"MTLCommandEncoderErrorState{name}"] for name in ("Completed", "Faulted", "Pending")
)


class MTLCommandBufferDescriptor(NSObject):
    """How a command buffer is to be made."""

    def __init__(self) -> None:
        super().__init__()
        self._tells = False

    @selector("Q")
    def setErrorOptions_(self, options: int) -> None:
        self._tells = bool(options & ENUMS["MTLCommandBufferErrorOptionEncoderExecutionStatus"])


class EncoderInfo(NSObject):
    """One encoder's label and state."""

    def __init__(self, label: str, state: int) -> None:
        super().__init__()
        self._label, self._state = label, state

    @selector(gives="@")
    def label(self) -> str:
        return self._label or ""

    @selector(gives="q")
    def errorState(self) -> int:
        return self._state


def encoder_infos(items: "Sequence[Item]") -> list[EncoderInfo]:
    """Of a command buffer that fails now: the first pass that is not done is at fault."""
    passes = [item for item in items if isinstance(item, Pass)]
    undone = [work for work in passes if not work.done]
    states = {id(work): PENDING for work in undone} | {id(work): FAULTED for work in undone[:1]}
    return [EncoderInfo(work.label or "", states.get(id(work), COMPLETED)) for work in passes]
