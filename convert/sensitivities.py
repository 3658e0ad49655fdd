"""Sensitivities: what an error in one layer's projection costs at the model's output.

Measured ones are the KL divergence at the output, in nats, per unit of relative squared weight error; a calibration
file may hold them. Without them every matrix counts the same.
"""

from typing import Annotated

from msgspec import Meta, Struct

from ..layout.record import PROJECTIONS
from ..manifests.errors import UsageError
from ..manifests.schema import Model, Name, Projection

MAX = 1e30

PerError = Annotated[float, Meta(ge=0, le=MAX)]
LayerSensitivities = Annotated[dict[Projection, PerError], Meta(min_length=3, max_length=3)]


class Sensitivities(Struct, frozen=True, forbid_unknown_fields=True):
    """`layers` has, for each layer, the KL per unit of relative squared error of every projection's experts.

    `positions` says at how many positions of a text it was measured, `format` with which format; 0 and "" stand for
    not measured.
    """

    layers: Annotated[tuple[LayerSensitivities, ...], Meta(min_length=1, max_length=4096)]
    positions: Annotated[int, Meta(ge=0, le=2**53)] = 0
    format: Name = ""

    @classmethod
    def equal(cls, layers: int) -> "Sensitivities":
        """Every matrix counts 1: costs are then sums of relative squared errors, no divergences."""
        return cls(tuple(dict.fromkeys(PROJECTIONS, 1.0) for _ in range(layers)))

    @property
    def measured(self) -> bool:
        """Whether costs are predicted divergences."""
        return self.positions > 0

    @property
    def total(self) -> float:
        """What the same relative squared error in all expert matrices costs, per unit."""
        return sum(layer[name] for layer in self.layers for name in layer)

    def require_for(self, model: Model) -> None:
        """Raise UsageError unless they are of a model with as many layers."""
        if len(self.layers) != model.num_layers:
            raise UsageError(
                f"the sensitivities are of {len(self.layers)} layers, and this model has {model.num_layers};"
                " calibrate this model"
            )
