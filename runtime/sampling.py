"""From logits to the next token: greedy, temperature, top-k, top-p, min-p.

The order (temperature, top-k, top-p, min-p) and what each keeps are those of transformers' logits warpers, computed
in float64. Promises that the same settings, seed and logits give the same tokens everywhere: NumPy's PCG64, one draw
per token, none where only one is allowed. Logits that are not finite are an error, never a token.
"""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..manifests.errors import CorruptInputError, UsageError

Logits = NDArray[np.floating[Any]]
Allowed = NDArray[np.bool_]
# What transformers would apply and we do not, with the value that asks for nothing.
UNSUPPORTED = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "typical_p": 1.0, "top_h": None}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 keep every token."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature {self.temperature} is not a number from 0 up")
        if not 0 <= self.top_p <= 1:
            raise UsageError(f"top-p {self.top_p} is not between 0 and 1")
        if self.top_k < 0:
            raise UsageError(f"top-k {self.top_k} is negative; 0 keeps every token")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min-p {self.min_p} is not between 0 and 1")
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"seed {self.seed} is negative")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str) -> "Sampling":
        """The defaults in a generation_config.json called `name`; a model that does not ask to sample is greedy.

        Its other settings then still hold for a user who raises the temperature. Raises CorruptInputError for a
        value of the wrong type or out of range.
        """
        temperature = _number(config, "temperature", 1.0, name) if config.get("do_sample") is True else 0.0
        top_k = config.get("top_k") or 0
        if type(top_k) is not int:
            raise CorruptInputError(f"{name}: top_k is {top_k!r}, not a whole number")
        try:
            return cls(temperature, _number(config, "top_p", 1.0, name), top_k, _number(config, "min_p", 0.0, name))
        except UsageError as error:
            raise CorruptInputError(f"{name}: {error}") from error

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0

    def with_seed(self) -> "Sampling":
        """The same settings with a seed: a fresh random one when none was given, so that a run can be repeated."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(32))


def unsupported(config: Mapping[str, Any]) -> list[str]:
    """Settings of a generation_config.json that ask for something this engine does not do."""
    return [name for name, neutral in UNSUPPORTED.items() if config.get(name, neutral) not in (neutral, None)]


class Sampler:
    """Chooses tokens by `settings`; owns the random state of one answer."""

    def __init__(self, settings: Sampling) -> None:
        self.settings = settings.with_seed()
        self._random = np.random.Generator(np.random.PCG64(self.settings.seed))

    def choose(self, logits: Logits, allowed: Allowed | None = None) -> int:
        """A token for logits [V], one of those that are `allowed` [V]; settings then see only these.

        Raises CorruptInputError when any logit is not finite.
        """
        check_finite(logits)
        if allowed is None:
            return self._chosen(logits)
        tokens = np.flatnonzero(allowed)
        return int(tokens[self._chosen(logits[tokens]) if len(tokens) > 1 else 0])

    def _chosen(self, logits: Logits) -> int:
        if self.settings.greedy:
            return int(np.argmax(logits))
        tokens, probabilities = distribution(logits, self.settings)
        cumulative = np.cumsum(probabilities)
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(tokens[min(drawn, len(tokens) - 1)])


def distribution(logits: Logits, settings: Sampling) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The kept tokens, ascending, and their probabilities (float64, summing to 1), for a temperature above 0."""
    tokens = _top_k(logits, settings.top_k)
    with np.errstate(over="ignore"):  # near temperature 0 all but the largest become -inf, which is right
        scaled = (logits[tokens].astype(np.float64) - float(logits.max())) / settings.temperature
    kept = _top_p(scaled, settings.top_p)
    kept = kept[np.exp(scaled[kept]) >= settings.min_p]  # the largest has exp(0) = 1
    weights = np.exp(scaled[kept])
    return tokens[kept], weights / weights.sum()


def check_finite(logits: Logits) -> None:
    """Raise CorruptInputError if any of the model's numbers is none."""
    if not np.isfinite(logits).all():
        raise CorruptInputError(
            "the model's output is not finite, so there is no next token; moe-pack verify shows whether it is damaged"
        )


def _top_k(logits: Logits, top_k: int) -> NDArray[np.intp]:
    """Tokens no less likely than the k-th; more than k of them when several tie there. No temperature changes that."""
    if top_k == 0 or top_k >= len(logits):
        return np.arange(len(logits))
    threshold = np.partition(logits, -top_k)[-top_k]
    return np.flatnonzero(logits >= threshold)


def _top_p(scaled: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """Indices of the fewest, likeliest scaled logits whose probabilities reach `top_p`; always at least one."""
    if top_p == 1:
        return np.arange(len(scaled))
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    likely = probabilities > (1 - top_p) / len(scaled)  # all others together stay below 1 - top_p: no need to sort them
    likely[probabilities.argmax()] = True
    candidates = np.flatnonzero(likely)
    order = candidates[np.argsort(probabilities[candidates], kind="stable")]
    from_below = probabilities[~likely].sum() + np.cumsum(probabilities[order])
    kept = from_below > 1 - top_p
    kept[-1] = True
    return np.sort(order[kept])


def _number(config: Mapping[str, Any], key: str, default: float, name: str) -> float:
    value = config.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or abs(value) > 1e9:
        raise CorruptInputError(f"{name}: {key} is {value!r}, not a number that makes sense")
    return float(value)
