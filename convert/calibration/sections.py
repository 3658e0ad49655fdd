"""The contents of a calibration file: which arrays the statistics of a layer are, and how they lie in bytes.

A section is a fixed list of little-endian arrays, joined; the model's geometry gives every size. A layer has one for
each expert, if their own correlations were kept, and then one with what is known of all of them. Arrays of two halves
hold first what is fitted to, then what is held out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from ...manifests.errors import CorruptInputError
from ...manifests.schema import Model
from ...quantize.calibration import triangle

ExpertHessians: TypeAlias = Literal["none", "inner", "all"]
EXPERT_HESSIANS: tuple[ExpertHessians, ...] = ("none", "inner", "all")
INPUT, INNER = "input", "inner"  # what gate and up see, and what down sees
GROUPS = {"gate": INPUT, "up": INPUT, "down": INNER}
FIT, HELD_OUT = 0, 1
HALVES = 2

Arrays: TypeAlias = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Field:
    """One array of a section; `dtype` is numpy's name with its byte order."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Shape:
    """The numbers that every size follows from, and whose correlations are kept for each expert."""

    layers: int
    experts: int
    hidden_size: int
    moe_intermediate_size: int
    expert_hessians: ExpertHessians

    @classmethod
    def of(cls, model: Model, expert_hessians: ExpertHessians) -> "Shape":
        """That of a model."""
        widths = (model.hidden_size, model.moe_intermediate_size)
        return cls(model.num_layers, model.num_experts, *widths, expert_hessians)

    @property
    def widths(self) -> dict[str, int]:
        """Columns of each group of inputs."""
        return {INPUT: self.hidden_size, INNER: self.moe_intermediate_size}

    @property
    def own(self) -> tuple[str, ...]:
        """The groups whose correlations are kept for each expert."""
        return {"none": (), "inner": (INNER,), "all": (INPUT, INNER)}[self.expert_hessians]

    def layer_fields(self) -> tuple[Field, ...]:
        """What is known of all experts of a layer: visits, sums of the routes' weights, moments.

        `*.diagonals` are mean squares of an expert's inputs, those of down times the route's weight; `*.pool` are
        the whole layer's moments: of every token for gate and up, of every visit for down.
        """
        fields = [Field("visits", "<i8", (HALVES, self.experts)), Field("shares", "<f8", (HALVES, self.experts))]
        for group, width in self.widths.items():
            fields.append(Field(f"{group}.diagonals", "<f4", (HALVES, self.experts, width)))
            fields.append(Field(f"{group}.pool.diagonal", "<f4", (HALVES, width)))
            fields.append(Field(f"{group}.pool.correlations", "<i2", (HALVES, triangle(width))))
        return tuple(fields)

    def expert_fields(self) -> tuple[Field, ...]:
        """What is kept of each expert alone; nothing, perhaps."""
        return tuple(
            Field(f"{group}.correlations", "<i2", (HALVES, triangle(self.widths[group]))) for group in self.own
        )

    def sections(self, layer: int) -> dict[str, tuple[Field, ...]]:
        """The arrays of every section of a layer, in the file's order."""
        experts = range(self.experts) if self.own else ()
        found = {expert_section(layer, expert): self.expert_fields() for expert in experts}
        return found | {layer_section(layer): self.layer_fields()}

    def all_sections(self) -> dict[str, tuple[Field, ...]]:
        """The arrays of every section of the file, in its order."""
        return {name: fields for layer in range(self.layers) for name, fields in self.sections(layer).items()}

    @property
    def count(self) -> int:
        """How many sections the file has."""
        return self.layers * (1 + (self.experts if self.own else 0))

    @property
    def correlation_bytes(self) -> int:
        """Bytes of all correlations, of pools and experts, before compression."""
        fields = self.layers * [*self.layer_fields(), *(self.experts * self.expert_fields())]
        return sum(field.size for field in fields if field.name.endswith("correlations"))

    @property
    def total_bytes(self) -> int:
        """Bytes of all sections before compression."""
        return self.layers * (section_size(self.layer_fields()) + self.experts * section_size(self.expert_fields()))


def choose(model: Model, wanted: str, most_bytes: int) -> ExpertHessians:
    """What to keep for each expert: as `wanted`, or for "auto" the most whose correlations fit into `most_bytes`."""
    for choice in EXPERT_HESSIANS:
        if wanted == choice:
            return choice
    fitting = [choice for choice in EXPERT_HESSIANS if Shape.of(model, choice).correlation_bytes <= most_bytes]
    return fitting[-1] if fitting else "none"


def layer_section(layer: int) -> str:
    """The name of the section of a layer."""
    return f"layer {layer}"


def expert_section(layer: int, expert: int) -> str:
    """The name of the section of an expert."""
    return f"layer {layer} expert {expert}"


def section_size(fields: tuple[Field, ...]) -> int:
    """Bytes of a section."""
    return sum(field.size for field in fields)


def encode(fields: tuple[Field, ...], arrays: Arrays) -> bytes:
    """The bytes of a section. Raises ValueError if an array has another shape than its field."""
    for field in fields:
        if arrays[field.name].shape != field.shape:
            raise ValueError(f"{field.name} has shape {arrays[field.name].shape}, not {field.shape}")
    return b"".join(np.ascontiguousarray(arrays[field.name], field.dtype).tobytes() for field in fields)


def decode(fields: tuple[Field, ...], content: bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays of a section, read-only. Raises CorruptInputError for a number that no statistic can be."""
    arrays: dict[str, np.ndarray] = {}
    offset = 0
    for field in fields:
        array: np.ndarray[Any, Any] = np.frombuffer(content, field.dtype, math.prod(field.shape), offset)
        if not field.name.endswith("correlations") and not (np.isfinite(array).all() and (array >= 0).all()):
            raise CorruptInputError(f"{where}: {field.name} holds a number that is negative or not finite")
        arrays[field.name] = array.reshape(field.shape)
        offset += field.size
    return arrays
