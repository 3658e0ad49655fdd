"""Whether guessing pays: the share of records read on a guess that were then used, over a sliding window.

A guess that was right saves one read's wait; a wrong one may stand in the way of a read that is needed, for as long as
one read takes. So below one half it does not pay, and guessing rests, to be tried again rarely.
"""

from collections import deque

WINDOW = 64  # guesses looked back on
TRIAL = 16  # guesses needed for a judgement
BREAK_EVEN = 0.5
REST = 2048  # visits without a guess once it did not pay
FRUITLESS = 64  # guesses, two a layer, in which nothing was left to read: all is resident, and guessing rests


class Foresight:
    """Counts outcomes and decides."""

    def __init__(self) -> None:
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)
        self._fruitless = 0
        self._rest = 0

    @property
    def pays(self) -> bool:
        """Whether to guess now."""
        return self._rest == 0

    def visit(self) -> None:
        """A layer is visited; a rest goes by."""
        self._rest = max(0, self._rest - 1)

    def tried(self, reads: int) -> None:
        """A guess led to so many reads."""
        self._fruitless = 0 if reads else self._fruitless + 1
        if self._fruitless == FRUITLESS:
            self._begin_rest()

    def judge(self, *, used: bool) -> None:
        """A record read on a guess was used, or was not."""
        self._outcomes.append(used)
        enough = len(self._outcomes) >= TRIAL
        if enough and sum(self._outcomes) < BREAK_EVEN * len(self._outcomes):
            self._begin_rest()

    def _begin_rest(self) -> None:
        self._rest, self._fruitless = REST, 0
        self._outcomes.clear()
