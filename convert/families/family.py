"""What a model family is: tables of names, shapes and roles, and the way to read its geometry from config.json.

A family is data, one file of this folder; nothing else in the room knows the names of a model's tensors. They are
named canonically (FORMAT.md): `model.layers.N.…`, `lm_head.weight`; dialects translate a checkpoint's own prefixes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ...manifests.schema import LayerType, Model


class Role(Enum):
    """What a trunk tensor is to the packer."""

    MATRIX = "matrix"  # follows the recipe's trunk format
    SENSITIVE = "sensitive matrix"  # follows it too, but never below 8 bits: small, and felt at once
    ROUTER = "router"  # decides which experts run: never below its precision in the source
    NORM = "norm"  # a plain multiplier in every dialect
    CENTERED_NORM = "centered norm"  # Hugging Face stores multiplier - 1
    CONVOLUTION = "convolution"  # depthwise; dialects place its axis of length 1 differently
    VECTOR = "vector"  # kept as it is

    @property
    def follows_recipe(self) -> bool:
        """Whether the recipe's trunk format says how such a tensor is stored."""
        return self in (Role.MATRIX, Role.SENSITIVE)

    @property
    def is_matrix(self) -> bool:
        """Whether a checkpoint may hold such a tensor quantized."""
        return self.follows_recipe or self is Role.ROUTER


class Presence(Enum):
    """When a tensor belongs to the model."""

    ALWAYS = "always"
    UNTIED = "untied"  # only if the output head has its own weights
    TIED = "tied"  # only if it has not

    def holds(self, model: Model) -> bool:
        """Whether such a tensor belongs to `model`."""
        return self is Presence.ALWAYS or (self is Presence.TIED) == model.tie_word_embeddings


@dataclass(frozen=True)
class Row:
    """A line of a family's table; `shape` of the canonical tensor is a function of the geometry."""

    name: str
    role: Role
    shape: Callable[[Model], tuple[int, ...]]
    presence: Presence = Presence.ALWAYS


@dataclass(frozen=True)
class TrunkTensor:
    """One trunk tensor of one model, by its canonical name and shape."""

    name: str
    role: Role
    shape: tuple[int, ...]

    @property
    def stem(self) -> str:
        """The module's name: what `scales` and `biases` and a manifest's formats are named after."""
        return self.name.removesuffix(".weight")


@dataclass(frozen=True)
class ExpertNames:
    """What a layer's routed experts are called, after the layer's prefix, in each way of storing them.

    `gate_up` [experts, 2 intermediate, hidden] and `down` [experts, hidden, intermediate] are fused tensors.
    In `separate` and `stacked`, `{projection}` stands for gate, up or down, and `{expert}` for the expert's index.
    """

    gate_up: str
    down: str
    separate: str
    stacked: str


@dataclass(frozen=True)
class Family:
    """A model family. `left_out` maps the prefixes of tensors that a text model does without to what they are."""

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    before_layers: tuple[Row, ...]
    every_layer: tuple[Row, ...]
    by_layer_type: Mapping[LayerType, tuple[Row, ...]]
    after_layers: tuple[Row, ...]
    experts: ExpertNames
    left_out: Mapping[str, str]
    geometry: Callable[[Mapping[str, Any]], Model]

    def trunk(self, model: Model) -> Iterator[TrunkTensor]:
        """Every trunk tensor of `model`, in the order in which a pack stores them."""
        yield from _tensors(self.before_layers, model, "")
        for index, layer_type in enumerate(model.layer_types):
            rows = (*self.by_layer_type[layer_type], *self.every_layer)
            yield from _tensors(rows, model, layer_prefix(index))
        yield from _tensors(self.after_layers, model, "")

    def unused(self, model: Model) -> Iterator[str]:
        """The names of tensors that `model` does without because its output head is tied to the embedding."""
        if model.tie_word_embeddings:
            yield from (row.name for row in self.after_layers if row.presence is Presence.UNTIED)


def layer_prefix(index: int) -> str:
    """What every canonical name of layer `index` begins with."""
    return f"model.layers.{index}."


def _tensors(rows: tuple[Row, ...], model: Model, prefix: str) -> Iterator[TrunkTensor]:
    for row in rows:
        if row.presence.holds(model):
            yield TrunkTensor(prefix + row.name, row.role, row.shape(model))
