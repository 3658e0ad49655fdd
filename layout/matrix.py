"""A matrix as it is stored, in a trunk, in an expert record or in a checkpoint: what engines take over unchanged."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .formats import PART_DTYPES, Format
from .record import PROJECTIONS, RecordLayout

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix [rows, cols] as it is stored: floats, or codes in `format` with the arrays that give them values.

    Affine formats have `scales` and `biases`, grid formats `grids` and `scales`; see Format.parts.
    """

    weight: Array
    scales: Array | None = None
    biases: Array | None = None
    format: Format | None = None
    grids: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the matrix that is meant, whatever its codes occupy."""
        rows, width = self.weight.shape
        return rows, width if self.format is None else width * 32 // self.format.bits

    @property
    def parts(self) -> tuple[Array, ...]:
        """Its arrays, in the order of Format.parts."""
        return tuple(part for part in (self.weight, self.grids, self.scales, self.biases) if part is not None)


ExpertMatrices: TypeAlias = Mapping[str, StoredMatrix]  # of one expert, by projection: "gate", "up", "down"


def expert_matrices(record: Array, layout: RecordLayout) -> ExpertMatrices:
    """The matrices of an expert's record, uint8 [stride], as views of its bytes."""
    return {projection: _matrix(record, layout, projection) for projection in PROJECTIONS}


def _matrix(record: Array, layout: RecordLayout, projection: str) -> StoredMatrix:
    format_ = layout.formats[projection]
    parts = [name for name, _, _ in format_.parts(*layout.shape.of(projection))]
    return StoredMatrix(**{part: _view(record, layout, f"{projection}.{part}") for part in parts}, format=format_)


def _view(record: Array, layout: RecordLayout, name: str) -> Array:
    component = layout[name]
    piece = record[component.offset : component.offset + component.size]
    view: Array = piece.view(PART_DTYPES[component.dtype])
    return view.reshape(component.shape)
