"""Sensitivities: what an error in one layer's projection costs at the model's output.

Measured ones are the KL divergence at the output, in nats, per unit of relative squared weight error; a calibration
file may hold them. Without them every matrix counts the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from ..layout.record import PROJECTIONS
from ..manifests.errors import CorruptInputError, UsageError
from ..manifests.schema import Model


@dataclass(frozen=True)
class Sensitivities:
    """`layers` has, for each layer, the KL per unit of relative squared error of every projection's experts.

    `tokens` says on how many tokens it was measured, `format` with which format; 0 and "" stand for not measured.
    """

    layers: tuple[Mapping[str, float], ...]
    tokens: int = 0
    format: str = ""

    @classmethod
    def equal(cls, layers: int) -> "Sensitivities":
        """Every matrix counts 1: costs are then sums of relative squared errors, no divergences."""
        return cls((dict.fromkeys(PROJECTIONS, 1.0),) * layers)

    @property
    def measured(self) -> bool:
        """Whether costs are predicted divergences."""
        return self.tokens > 0

    @property
    def total(self) -> float:
        """What the same relative squared error in all expert matrices costs, per unit."""
        return sum(sum(layer.values()) for layer in self.layers)

    def require_for(self, model: Model) -> None:
        """Raise UsageError unless they are of a model with as many layers."""
        if len(self.layers) != model.num_layers:
            raise UsageError(
                f"the sensitivities are of {len(self.layers)} layers, and this model has {model.num_layers};"
                " calibrate this model"
            )

    def to_builtins(self) -> dict[str, Any]:
        """What a calibration file stores."""
        return {"tokens": self.tokens, "format": self.format, "layers": [dict(layer) for layer in self.layers]}

    @classmethod
    def of(cls, stored: Any, where: str) -> "Sensitivities":
        """What `to_builtins` gave, found in `where`. Raises CorruptInputError if it is anything else."""
        try:
            found = msgspec.convert(stored, _Stored)
        except msgspec.ValidationError as error:
            raise CorruptInputError(f"{where} holds no sensitivities: {error}; calibrate again") from None
        layers = tuple({"gate": layer.gate, "up": layer.up, "down": layer.down} for layer in found.layers)
        if found.tokens < 1 or any(not 0 <= value < float("inf") for layer in layers for value in layer.values()):
            raise CorruptInputError(f"{where} holds sensitivities that are no numbers from 0; calibrate again")
        return cls(layers, found.tokens, found.format)


class _Layer(Struct, frozen=True, forbid_unknown_fields=True):
    gate: float
    up: float
    down: float


class _Stored(Struct, frozen=True, forbid_unknown_fields=True):
    tokens: int
    format: str
    layers: list[_Layer]
