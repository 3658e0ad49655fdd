"""Whether floats are numbers at all: one NaN in a checkpoint would silence an expert or a whole model."""

from typing import Any

import numpy as np

from ..manifests.errors import CorruptInputError

# Of each float type: its bits as an unsigned integer, all bits but the sign, and the lowest that is not finite.
_BITS: dict[str, tuple[type[np.unsignedinteger[Any]], int, int]] = {
    "bfloat16": (np.uint16, 0x7FFF, 0x7F80),
    "float16": (np.uint16, 0x7FFF, 0x7C00),
    "float32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
}


def all_finite(array: np.ndarray) -> bool:
    """Whether a bfloat16, float16 or float32 array holds neither NaN nor infinity."""
    bits, magnitude, infinity = _BITS[array.dtype.name]
    return array.size == 0 or int((array.view(bits) & bits(magnitude)).max()) < infinity


def require_finite(array: np.ndarray, what: str) -> None:
    """Raise CorruptInputError, naming `what`, unless every float of `array` is finite."""
    if not all_finite(array):
        raise not_finite(what)


def not_finite(what: str) -> CorruptInputError:
    """The error for `what` holding NaN or infinity."""
    return CorruptInputError(f"{what} holds NaN or infinity; the checkpoint is damaged or was trained so")
