"""Memory for logprobs that are told at the end: a part of it is planned, and requests take of it what they keep.

Owns how much is kept at once. Used in one event loop. Knows no answer's inside.
"""

from collections.abc import Sequence

from ...manifests.errors import UsageError
from ..serving.scheduler import BusyError
from .wishes import Ask, WishError

MOST = 8 * 2048 * 2  # of a batch of an evaluation harness: of its tokens, and of an alternative of each
PROMPT_BYTES = 720  # for each of them; measured: 526 with 5 alternatives, 640 with 1, 706 with none
PLANNED_BYTES = MOST * PROMPT_BYTES


def of_prompts(asks: Sequence[Ask]) -> int:
    """Bytes for prompts whose logprobs are told. Raises WishError for more than are ever told at once."""
    told = sum(len(ask.tokens) * _each(ask) for ask in asks if ask.scored)
    if told > MOST:
        most, tokens = MOST // _each(asks[0]), sum(len(ask.tokens) for ask in asks)
        said = f"with so many logprobs, echo tells those of {most} tokens at most, and there are {tokens}"
        raise WishError("prompt", f"{said}; send fewer prompts at once, shorter pieces, or a smaller logprobs")
    return told * PROMPT_BYTES


def _each(ask: Ask) -> int:
    return 1 + (ask.top_logprobs or 0)


class Allowance:
    """`left`: bytes that nobody has taken."""

    def __init__(self) -> None:
        self.left = PLANNED_BYTES

    @property
    def taken(self) -> int:
        """Bytes that are kept now."""
        return PLANNED_BYTES - self.left


class Share:
    """What one request has of it: what it keeps, and never less than `least`, which it takes at once, or BusyError."""

    def __init__(self, allowance: Allowance, least: int) -> None:
        self._allowance, self._least, self._size = allowance, least, 0
        self.hold(0)

    def hold(self, size: int) -> None:
        """So many bytes now. Raises BusyError where others have too many, UsageError where it never finds so many."""
        size = max(size, self._least)
        if size > PLANNED_BYTES:
            said = f"these logprobs outgrow the {PLANNED_BYTES / 1e6:.1f} MB that are kept for the end of an answer"
            raise UsageError(f"{said}; ask for fewer tokens or alternatives, or stream chats and completions")
        if size - self._size > self._allowance.left:
            raise BusyError("the logprobs of other requests leave no room for those of this one", 1.0)
        self._allowance.left -= size - self._size
        self._size = size

    def give_back(self) -> None:
        """All of it."""
        self._allowance.left += self._size
        self._size = self._least = 0
