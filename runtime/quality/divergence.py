"""How far a model's next-token distributions are from a reference's, position by position, in float64.

KL(reference || other) = sum over the whole vocabulary of p (log p - log q), in nats. Identical logits give exactly 0.
Owns the sums, not where logits come from; two full sets of logits never exist.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Floats, Ids

Doubles: TypeAlias = NDArray[np.float64]

LOGITS_BYTES = 64 * 1024 * 1024  # of float64 logits of one model at a time


@dataclass(frozen=True, eq=False)
class Positions:
    """One value per scored position: `divergence` in nats, the losses -log p(target), the likeliest tokens of both."""

    divergence: Doubles
    reference_loss: Doubles
    loss: Doubles
    reference_top: Ids
    top: Ids

    def __len__(self) -> int:
        return len(self.divergence)

    @classmethod
    def joined(cls, parts: Iterable["Positions"]) -> "Positions":
        """The positions of all parts, in order."""
        listed = list(parts)
        return cls(*(np.concatenate([getattr(part, field.name) for part in listed]) for field in fields(cls)))

    def where(self, chosen: NDArray[np.bool_]) -> "Positions":
        """The positions for which `chosen` is true."""
        return Positions(*(getattr(self, field.name)[chosen] for field in fields(self)))


def compare(reference: Floats, other: Floats, targets: Ids) -> Positions:
    """Positions of logits [n, vocab] of both models and the tokens [n] that followed.

    Rounding may leave a divergence a little below zero; it is then zero.
    """
    log_p, log_q = log_softmax(reference), log_softmax(other)
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    rows = np.arange(len(targets))
    return Positions(
        divergence=np.maximum(divergence, 0.0),
        reference_loss=-log_p[rows, targets],
        loss=-log_q[rows, targets],
        reference_top=reference.argmax(axis=1).astype(np.int32),
        top=other.argmax(axis=1).astype(np.int32),
    )


def log_softmax(logits: Floats) -> Doubles:
    """Log probabilities of each row, float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def blocks(positions: int, vocab_size: int) -> Iterator[slice]:
    """Runs of positions whose logits fit LOGITS_BYTES."""
    step = max(1, LOGITS_BYTES // (8 * vocab_size))
    for first in range(0, positions, step):
        yield slice(first, min(first + step, positions))
