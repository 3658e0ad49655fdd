"""From values per position to figures with standard errors.

Tokens of a document are correlated, so every error is computed twice: as if positions were independent, and clustered
by document (the ratio estimator's linearisation, with C / (C - 1) for C clusters). The larger one is what counts.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .divergence import Doubles, Positions

Clusters = NDArray[np.int64]  # of each position, the document or window it is from


@dataclass(frozen=True)
class Estimate:
    """A mean. `clustered` is None with fewer than two clusters, and `plain` infinite of a single value."""

    mean: float
    plain: float
    clustered: float | None

    @property
    def error(self) -> float:
        """The standard error to claim, the larger of both."""
        return max(self.plain, self.clustered or 0.0)

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        errors = {"standard_error": self.error, "plain_error": self.plain, "clustered_error": self.clustered}
        return {"mean": self.mean, **errors}


def estimate(values: Doubles, clusters: Clusters) -> Estimate:
    """The mean of at least one value and its errors."""
    count, mean = len(values), float(values.mean())
    plain = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    _, index = np.unique(clusters, return_inverse=True)
    sums = np.bincount(index, values - mean)
    if len(sums) < 2:
        return Estimate(mean, plain, None)
    return Estimate(mean, plain, math.sqrt(len(sums) / (len(sums) - 1) * float((sums**2).sum())) / count)


def ratio(values: Doubles, base: Doubles, clusters: Clusters) -> Estimate:
    """mean(values) / mean(base) of two models on the same positions, and its errors (delta method, paired).

    Far surer than the two means are: what makes a text hard is common to both.
    """
    mean = float(base.mean())
    quotient = float(values.mean()) / mean
    errors = estimate((values - quotient * base) / mean, clusters)
    return Estimate(quotient, errors.plain, errors.clustered)


@dataclass(frozen=True)
class Summary:
    """What the positions of a text, or of a slice of it, come to. Divergences are in nats."""

    positions: int
    divergence: Estimate
    median: float
    p99: float
    p999: float
    largest: float
    agreement: Estimate  # of the likeliest token
    reference_perplexity: float
    perplexity: float
    log_ratio: Estimate  # of the perplexities: the other's over the reference's

    @classmethod
    def of(cls, positions: Positions, clusters: Clusters) -> "Summary":
        """Summarise at least one position."""
        median, p99, p999 = (float(value) for value in np.quantile(positions.divergence, (0.5, 0.99, 0.999)))
        return cls(
            positions=len(positions),
            divergence=estimate(positions.divergence, clusters),
            median=median,
            p99=p99,
            p999=p999,
            largest=float(positions.divergence.max()),
            agreement=estimate((positions.top == positions.reference_top).astype(np.float64), clusters),
            reference_perplexity=exponential(float(positions.reference_loss.mean())),
            perplexity=exponential(float(positions.loss.mean())),
            log_ratio=estimate(positions.loss - positions.reference_loss, clusters),
        )

    @property
    def ratio(self) -> float:
        """Perplexity over the reference's."""
        return exponential(self.log_ratio.mean)

    @property
    def ratio_error(self) -> float:
        """The standard error of that, to first order."""
        return self.ratio * self.log_ratio.error if math.isfinite(self.ratio) else math.inf

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "positions": self.positions,
            "kl": {
                **self.divergence.document(),
                "median": self.median,
                "p99": self.p99,
                "p99.9": self.p999,
                "largest": self.largest,
            },
            "top1_agreement": self.agreement.document(),
            "reference_perplexity": self.reference_perplexity,
            "perplexity": self.perplexity,
            "perplexity_ratio": self.ratio,
            "log_perplexity_ratio": self.log_ratio.document(),
        }


def exponential(logarithm: float) -> float:
    """exp of a mean loss or of a difference of two; infinite beyond what a float holds."""
    try:
        return math.exp(logarithm)
    except OverflowError:
        return math.inf
