"""Rates of successes among cases, how sure they are, and how sure a difference of two models on the same cases is.

A rate's interval is Wilson's score interval (E. B. Wilson, Probable inference, the law of succession, and statistical
inference, Journal of the American Statistical Association 22, 1927): unlike a standard error it does not shrink to
nothing when all of a few cases succeed.

The paired bootstrap draws cases with replacement, keeping each case's two outcomes together (Efron, 1979). NumPy's
PCG64 with a fixed seed: the same outcomes give the same figures everywhere.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 0
RESAMPLES = 10_000
INTERVAL = (0.025, 0.975)
Z = NormalDist().inv_cdf(INTERVAL[1])
BATCH = 500  # resamples drawn together

Outcomes = NDArray[np.bool_]  # one per case


@dataclass(frozen=True)
class Rate:
    """Successes among cases. `error` is the binomial standard error."""

    cases: int
    successes: int

    @classmethod
    def of(cls, outcomes: Outcomes) -> "Rate":
        """Count outcomes."""
        return cls(len(outcomes), int(outcomes.sum()))

    @property
    def value(self) -> float:
        """The share of successes."""
        return self.successes / self.cases

    @property
    def error(self) -> float:
        """sqrt(p (1 - p) / n)."""
        return math.sqrt(self.value * (1 - self.value) / self.cases)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval: rates p that the share of successes is at most Z sqrt(p (1 - p) / n) away from."""
        spread = Z * Z / self.cases
        middle = (self.value + spread / 2) / (1 + spread)
        half = math.sqrt(spread * (self.value * (1 - self.value) + spread / 4)) / (1 + spread)
        return max(0.0, middle - half), min(1.0, middle + half)

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        counts = {"cases": self.cases, "successes": self.successes}
        return {**counts, "rate": self.value, "standard_error": self.error, "interval_95": list(self.interval)}


@dataclass(frozen=True)
class Difference:
    """A rate minus the reference's on the same cases: its bootstrap standard error and 95 % interval."""

    value: float
    error: float
    low: float
    high: float

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {"difference": self.value, "standard_error": self.error, "interval_95": [self.low, self.high]}


def paired_difference(outcomes: Outcomes, reference: Outcomes) -> Difference:
    """Compare two models' outcomes on the same cases, at least one."""
    differences = outcomes.astype(np.float64) - reference.astype(np.float64)
    random = np.random.Generator(np.random.PCG64(SEED))
    means = np.concatenate([_resampled(differences, random) for _ in range(RESAMPLES // BATCH)])
    low, high = np.quantile(means, INTERVAL)
    return Difference(float(differences.mean()), float(means.std(ddof=1)), float(low), float(high))


def _resampled(values: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    means: NDArray[np.float64] = values[random.integers(0, len(values), (BATCH, len(values)))].mean(axis=1)
    return means
