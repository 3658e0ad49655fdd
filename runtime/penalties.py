"""What a request adds to logits before a token is chosen: penalties for what was said, and biases of its own.

In this order: the repetition penalty (transformers' definition: over prompt and answer, a positive logit is divided, a
negative one multiplied), frequency and presence penalty (OpenAI's: over the answer alone, with its end token left out),
biases, so that one of -100 or 100 holds whatever the others do. Float64. Knows neither text nor how tokens are chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Penalties:
    """Ask for nothing by default: presence and frequency 0, repetition 1, no biases by token."""

    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    biases: Mapping[int, float] = field(default_factory=dict)

    @property
    def neutral(self) -> bool:
        """Whether logits stay as they are."""
        return not (self.presence or self.frequency or self.biases) and self.repetition == 1


class Penalizer:
    """One answer's: `adjusted` logits, then `take` the token that came. `prompt` counts as repeated, not as said."""

    def __init__(self, penalties: Penalties, prompt: Sequence[int]) -> None:
        self._penalties = penalties
        self._seen = set(prompt)
        self._said: dict[int, int] = {}
        self._biased = np.fromiter(penalties.biases, np.intp)
        self._biases = np.fromiter(penalties.biases.values(), np.float64)

    def adjusted(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Logits [V] with all that was asked for; themselves if that is nothing."""
        if self._penalties.neutral:
            return logits
        found = logits.astype(np.float64)
        self._repeat(found)
        said, counts = np.fromiter(self._said, np.intp), np.fromiter(self._said.values(), np.float64)
        found[said] -= counts * self._penalties.frequency + self._penalties.presence
        found[self._biased] += self._biases
        return found

    def take(self, token: int) -> None:
        """A token that came."""
        self._seen.add(token)
        self._said[token] = self._said.get(token, 0) + 1

    def _repeat(self, logits: NDArray[np.float64]) -> None:
        if self._penalties.repetition == 1:
            return
        seen = np.fromiter(self._seen, np.intp)
        values, factor = logits[seen], self._penalties.repetition
        logits[seen] = np.where(values < 0, values * factor, values / factor)
