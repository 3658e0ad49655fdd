"""Memory for prompts' logprobs: a part of it is planned, and whoever is told them takes some and gives it back.

Owns how many are told at once, and what each takes. Used in one event loop. Knows no prompt's inside.
"""

from collections.abc import Sequence

from ...manifests.errors import MoepackError
from ..serving.scheduler import BusyError
from .wishes import Ask, WishError

MOST = 8 * 2048 * 2  # of a batch of an evaluation harness: of its tokens, and of an alternative of each
EACH_BYTES = 683  # measured, of tokens of 40 characters: 386 with 5 alternatives, 525 with 1, 591 with none
PLANNED_BYTES = MOST * EACH_BYTES


class ScoringError(BusyError):
    """Other prompts' logprobs are being told, and memory for these is left when they are."""

    def __init__(self) -> None:
        said = "the logprobs of other prompts are being told, which leave no room for those of these"
        MoepackError.__init__(self, f"{said}; try again in 1 s")
        self.seconds = 1.0


def count(asks: Sequence[Ask]) -> int:
    """How many are told."""
    return sum(len(ask.tokens) * _each(ask) for ask in asks if ask.scored)


def require_possible(asks: Sequence[Ask]) -> None:
    """Raises WishError for prompts that have more than are ever told at once."""
    if count(asks) > MOST:
        most, tokens = MOST // _each(asks[0]), sum(len(ask.tokens) for ask in asks)
        said = f"with so many logprobs, echo tells those of {most} tokens at most, and there are {tokens}"
        raise WishError("prompt", f"{said}; send fewer prompts at once, shorter pieces, or a smaller logprobs")


def _each(ask: Ask) -> int:
    return 1 + (ask.top_logprobs or 0)


class Scoring:
    """How many more may be told now."""

    def __init__(self) -> None:
        self._left = MOST

    def take(self, count: int) -> None:
        """Raises ScoringError if there are not so many left."""
        if count > self._left:
            raise ScoringError
        self._left -= count

    def give_back(self, count: int) -> None:
        """They were told."""
        self._left += count
