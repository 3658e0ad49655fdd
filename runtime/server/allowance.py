"""Memory for logprobs that are told at the end: a part of it is planned, and requests take of it what they keep.

Owns how much is kept at once, and what each token takes. Used in one event loop. Knows no answer's inside.
"""

from collections.abc import Sequence

from ...manifests.errors import MoepackError
from ..serving.answer import Part, Said
from ..serving.scheduler import BusyError
from .wishes import Ask, WishError

MOST = 8 * 2048 * 2  # of a batch of an evaluation harness: of its tokens, and of an alternative of each
PROMPT_BYTES = 683  # measured, of tokens of 40 characters: 386 with 5 alternatives, 525 with 1, 591 with none
TOKEN_BYTES, ALTERNATIVE_BYTES = 500, 260  # of an answer: kept, and again in its document
PLANNED_BYTES = MOST * PROMPT_BYTES


class FullError(BusyError):
    """Others keep theirs, and there is room when these are told."""

    def __init__(self) -> None:
        said = "the logprobs of other requests leave no room for those of this one"
        MoepackError.__init__(self, f"{said}; try again in 1 s")
        self.seconds = 1.0


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


def of_part(part: Part) -> int:
    """Bytes for a token of an answer, if the part has one."""
    if not isinstance(part, Said) or part.likelihood is None:
        return 0
    return TOKEN_BYTES + ALTERNATIVE_BYTES * len(part.likelihood.top)


class Allowance:
    """`left`: bytes that nobody has taken."""

    def __init__(self) -> None:
        self.left = PLANNED_BYTES


class Share:
    """What one request has taken of it."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance, self._size = allowance, 0

    def take(self, size: int) -> None:
        """So many bytes more. Raises FullError where others have them, WishError where it never finds so many."""
        if self._size + size > PLANNED_BYTES:
            said = f"more than the {PLANNED_BYTES / 1e6:.1f} MB that are kept for the end of an answer"
            raise WishError("logprobs", f"{said}; stream chats or completions, or ask for fewer tokens or alternatives")
        if size > self._allowance.left:
            raise FullError
        self._allowance.left -= size
        self._size += size

    def give_back(self) -> None:
        """All of it."""
        self._allowance.left += self._size
        self._size = 0
