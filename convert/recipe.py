"""Recipes: the format of every expert matrix and the method that chooses its codes, and the trunk's format.

A recipe is one coding for all experts' matrices and overrides for some layers and projections of them. All records of
a layer stay alike, so an expert is still found by its index.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from ..layout.formats import FORMATS, AffineFormat, Format, GridFormat, parse
from ..layout.plan import expert_shape
from ..layout.record import PROJECTIONS, ExpertShape
from ..manifests import schema
from ..manifests.errors import UsageError
from ..quantize.methods import ARITHMETIC, CALIBRATED_METHODS, METHODS, require_suited
from .families.family import Role
from .tensors import Affine, Encoding, format_of

EXPERT_FORMATS = tuple(format_.name for format_ in FORMATS)
TRUNK_FORMATS = ("source", "bf16", "affine8-g64", "affine4-g64")
TRUNK_METHOD = "mse"
DEFAULT_FORMAT = GridFormat("book", 2, 8)
DEFAULT_METHOD = "mse"
SENSITIVE_FORMAT = AffineFormat(8, 64)  # the fewest bits for trunk matrices that are small and matter much


@dataclass(frozen=True)
class Coding:
    """How a matrix is stored, and by which method its codes are chosen."""

    format: Format = DEFAULT_FORMAT
    method: str = DEFAULT_METHOD

    def __post_init__(self) -> None:
        try:
            require_suited(self.method, self.format)
        except ValueError as error:
            raise UsageError(str(error)) from None

    @classmethod
    def parse(cls, format: str, method: str) -> "Coding":
        """The coding of these names. Raises UsageError, listing the choices, for a name that is none."""
        _require("expert format", format, EXPERT_FORMATS)
        return cls(parse(format), checked_method(method))


Codings: TypeAlias = tuple[Mapping[str, Coding], ...]  # of each layer, by projection


@dataclass(frozen=True)
class Override:
    """Another coding for some projections of some layers; None stands for all layers."""

    layers: tuple[int, ...] | None
    projections: tuple[str, ...]
    coding: Coding


@dataclass(frozen=True)
class Recipe:
    """What was asked of the packer. Of two overrides for one matrix the later counts.

    `trunk_format` is one of TRUNK_FORMATS.
    """

    coding: Coding = field(default_factory=Coding)
    trunk_format: str = "source"
    overrides: tuple[Override, ...] = ()

    @classmethod
    def parse(cls, expert_format: str, method: str, trunk_format: str) -> "Recipe":
        """The recipe of these names. Raises UsageError, listing the choices, for a name that is none."""
        coding = Coding.parse(expert_format, method)
        return cls(coding, checked_trunk_format(trunk_format))

    @classmethod
    def of(cls, codings: Codings, trunk_format: str) -> "Recipe":
        """The shortest recipe for these codings: the most frequent one for all, and an override for each other."""
        counts = Counter(coding for layer in codings for coding in layer.values())
        common = counts.most_common(1)[0][0]
        layers: dict[tuple[tuple[str, ...], Coding], list[int]] = {}
        for index, layer in enumerate(codings):
            for coding in dict.fromkeys(layer.values()):
                if coding != common:
                    names = tuple(name for name in PROJECTIONS if layer[name] == coding)
                    layers.setdefault((names, coding), []).append(index)
        overrides = (Override(tuple(found), names, coding) for (names, coding), found in layers.items())
        return cls(common, trunk_format, tuple(overrides))

    @property
    def calibrated(self) -> bool:
        """Whether a method that it names goes by a calibration."""
        codings = (self.coding, *(override.coding for override in self.overrides))
        return any(coding.method in CALIBRATED_METHODS for coding in codings)

    def codings(self, model: schema.Model) -> Codings:
        """The coding of every layer's projections.

        Raises UsageError for a layer that the model does not have, and, naming what fits, for a format whose groups
        do not divide the rows of a matrix.
        """
        for override in self.overrides:
            _require_layers(override.layers or (), model.num_layers)
        layers = range(model.num_layers)
        codings: Codings = tuple({name: self._coding(layer, name) for name in PROJECTIONS} for layer in layers)
        for layer in codings:
            _require_fitting(layer, expert_shape(model))
        return codings

    def _coding(self, layer: int, projection: str) -> Coding:
        for override in reversed(self.overrides):
            if projection in override.projections and (override.layers is None or layer in override.layers):
                return override.coding
        return self.coding

    def trunk_target(self, role: Role, cols: int, encoding: Encoding) -> AffineFormat | str:
        """How a trunk tensor with rows of `cols` inputs is to be stored: a format, "bf16", or "source".

        A matrix that has no more bits than the format already stays as it is: more bits would not bring back what
        its codes have lost.
        """
        if not role.follows_recipe:
            return "source"
        if self.trunk_format in ("source", "bf16"):
            return self.trunk_format
        format_ = AffineFormat.parse(self.trunk_format)
        if role is Role.SENSITIVE and format_.bits < SENSITIVE_FORMAT.bits:
            format_ = SENSITIVE_FORMAT
        stored = format_of(encoding)
        enough = stored is not None and stored.bits <= format_.bits
        return format_ if format_.fits(cols) and not enough else "source"


def of_manifest(codings: Codings, trunk_format: str) -> schema.Recipe:
    """A recipe as a manifest records it: the same for all that come to the same codings."""
    recipe = Recipe.of(codings, trunk_format)
    overrides = [
        schema.Override(list(one.layers or ()), list(one.projections), one.coding.format.name, one.coding.method)  # type: ignore[arg-type]
        for one in recipe.overrides
    ]
    coding = recipe.coding
    return schema.Recipe(coding.format.name, coding.method, trunk_format, ARITHMETIC, overrides or msgspec.UNSET)


def passes_through(encoding: Encoding, format: Format) -> bool:
    """Whether an expert matrix stored like this already is what a record of `format` holds, bit for bit."""
    return isinstance(encoding, Affine) and encoding.format == format and encoding.dtype == "BF16"


def checked_method(name: str) -> str:
    """The name of a method. Raises UsageError, listing the choices, for a name that is none."""
    _require("method", name, METHODS)
    return name


def checked_trunk_format(name: str) -> str:
    """The name of a trunk format. Raises UsageError, listing the choices, for a name that is none."""
    _require("trunk format", name, TRUNK_FORMATS)
    return name


def checked_projection(name: str) -> str:
    """The name of a projection. Raises UsageError, listing the choices, for a name that is none."""
    _require("projection", name, PROJECTIONS)
    return name


def fitting(shape: ExpertShape) -> tuple[Format, ...]:
    """The formats that experts of this shape can have."""
    return tuple(
        format_ for format_ in FORMATS if format_.fits(shape.of("gate")[1]) and format_.fits(shape.of("down")[1])
    )


def _require(what: str, name: str, choices: Sequence[str]) -> None:
    if name not in choices:
        raise UsageError(f"{name!r} is no {what}; there are {', '.join(choices)}")


def _require_layers(layers: Sequence[int], count: int) -> None:
    if layers and not 0 <= max(layers) < count:
        there = f"this model has layers 0 to {count - 1}"
        raise UsageError(f"an override names layer {max(layers)}, and {there}; name only these")


def _require_fitting(layer: Mapping[str, Coding], shape: ExpertShape) -> None:
    for projection, coding in layer.items():
        cols = shape.of(projection)[1]
        if not coding.format.fits(cols):
            raise UsageError(
                f"{coding.format.name} does not fit: the experts' {projection} projection has {cols} inputs, which"
                f" groups of {coding.format.divisor} do not divide; {_what_fits(shape)}"
            )


def _what_fits(shape: ExpertShape) -> str:
    names = ", ".join(format_.name for format_ in fitting(shape))
    return f"formats that fit this model are {names}" if names else "no format fits this model"
