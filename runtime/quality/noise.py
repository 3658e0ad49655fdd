"""How far a pack's expert weights are from the reference's: SQNR per layer and projection, streamed expert by expert.

Signal to quantization noise, 10 log10 (sum w^2 / sum (w - w')^2) in dB over all experts of a layer, sums in float64;
infinite where every weight is the reference's.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...layout.matrix import StoredMatrix
from ...layout.record import PROJECTIONS
from ...manifests.progress import Task
from ..backends.base import Backend, Ids
from ..source import Source
from .divergence import Doubles


@dataclass(frozen=True, eq=False)
class Noise:
    """Sums of squares [layers, projections] of the reference's weights and of the differences."""

    power: Doubles
    error: Doubles

    def decibels(self) -> Doubles:
        """SQNR of each layer and projection."""
        return decibels(self.power, self.error)

    def overall(self) -> dict[str, float]:
        """SQNR of each projection over all layers, and of all experts' weights ("experts")."""
        sums = decibels(self.power.sum(axis=0), self.error.sum(axis=0))
        whole = decibels(self.power.sum(keepdims=True), self.error.sum(keepdims=True)).item()
        return {**dict(zip(PROJECTIONS, sums.tolist(), strict=True)), "experts": whole}

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        layers = [dict(zip(PROJECTIONS, row, strict=True)) for row in self.decibels().tolist()]
        return {"overall": self.overall(), "layers": layers}


def measure(reference: Source, other: Source, backend: Backend, task: Task) -> Noise:
    """Read every expert of both sources, of the same geometry, once. `task` advances by one per layer."""
    model = reference.model
    power, error = np.zeros((2, model.num_layers, len(PROJECTIONS)))
    everyone = range(model.num_experts)
    for layer in range(model.num_layers):
        pairs = zip(reference.experts(layer, everyone), other.experts(layer, everyone), strict=True)
        for (_, wanted), (_, found) in pairs:
            for index, projection in enumerate(PROJECTIONS):
                weights = dense(wanted[projection], backend)
                power[layer, index] += np.square(weights).sum()
                error[layer, index] += np.square(weights - dense(found[projection], backend)).sum()
        task.advance(1)
    return Noise(power, error)


def dense(stored: StoredMatrix, backend: Backend) -> Doubles:
    """The matrix [rows, cols] as kernels see it, float64."""
    return dense_rows(stored, np.arange(stored.shape[0], dtype=np.int32), backend)


def dense_rows(stored: StoredMatrix, rows: Ids, backend: Backend) -> Doubles:
    """Some rows of a matrix as kernels see them, float64."""
    values: Doubles = backend.to_host(backend.embed(backend.matrix(stored), rows)).astype(np.float64)
    return values


def decibels(power: Doubles, error: Doubles) -> Doubles:
    """10 log10 (power / error), elementwise; infinite without error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, math.inf, 10 * np.log10(power / error))
