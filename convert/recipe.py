"""Recipes: the formats of a pack's experts and trunk, and the method that chooses the experts' codes."""

from dataclasses import dataclass

from ..layout.formats import BITS, GROUP_SIZES, AffineFormat, Format
from ..layout.record import PROJECTIONS, ExpertShape
from ..manifests import schema
from ..manifests.errors import UsageError
from ..quantize.methods import METHODS
from .families.family import Role
from .tensors import Affine, Encoding, format_of

EXPERT_FORMATS = tuple(f"affine{bits}-g{group_size}" for bits in BITS for group_size in GROUP_SIZES)
TRUNK_FORMATS = ("source", "bf16", "affine8-g64", "affine4-g64")
TRUNK_METHOD = "mse"
DEFAULT_FORMAT = AffineFormat(2, 64)


@dataclass(frozen=True)
class Recipe:
    """What was asked of the packer. `trunk_format` is one of TRUNK_FORMATS, `method` one of METHODS."""

    expert_format: AffineFormat = DEFAULT_FORMAT
    method: str = "mse"
    trunk_format: str = "source"

    @classmethod
    def parse(cls, expert_format: str, method: str, trunk_format: str) -> "Recipe":
        """The recipe of these names. Raises UsageError, listing the choices, for a name that is none."""
        _require("expert format", expert_format, EXPERT_FORMATS)
        _require("method", method, METHODS)
        _require("trunk format", trunk_format, TRUNK_FORMATS)
        return cls(AffineFormat.parse(expert_format), method, trunk_format)

    @property
    def manifest(self) -> schema.Recipe:
        """The recipe as the manifest records it."""
        return schema.Recipe(expert_format=self.expert_format.name, method=self.method, trunk_format=self.trunk_format)

    def expert_formats(self, shape: ExpertShape) -> dict[str, AffineFormat]:
        """The format of each projection. Raises UsageError, naming what fits, if groups do not divide the inputs."""
        for projection in PROJECTIONS:
            cols = shape.of(projection)[1]
            if not self.expert_format.fits(cols):
                raise UsageError(
                    f"{self.expert_format.name} does not fit: the experts' {projection} projection has {cols} inputs;"
                    f" {_what_fits(shape)}"
                )
        return dict.fromkeys(PROJECTIONS, self.expert_format)

    def trunk_target(self, role: Role, cols: int, encoding: Encoding) -> AffineFormat | str:
        """How a trunk tensor with rows of `cols` inputs is to be stored: a format, "bf16", or "source".

        A matrix that has no more bits than the format already stays as it is: more bits would not bring back what
        its codes have lost.
        """
        if role is not Role.MATRIX or self.trunk_format in ("source", "bf16"):
            return self.trunk_format if role is Role.MATRIX else "source"
        format_ = AffineFormat.parse(self.trunk_format)
        stored = format_of(encoding)
        enough = stored is not None and stored.bits <= format_.bits
        return format_ if format_.fits(cols) and not enough else "source"


def passes_through(encoding: Encoding, format: Format) -> bool:
    """Whether an expert matrix stored like this already is what a record of `format` holds, bit for bit."""
    return isinstance(encoding, Affine) and encoding.format == format and encoding.dtype == "BF16"


def _require(what: str, name: str, choices: tuple[str, ...]) -> None:
    if name not in choices:
        raise UsageError(f"{name!r} is no {what}; there are {', '.join(choices)}")


def _what_fits(shape: ExpertShape) -> str:
    inputs = (shape.hidden, shape.intermediate)
    sizes = [size for size in GROUP_SIZES if all(AffineFormat(2, size).fits(cols) for cols in inputs)]
    if not sizes:
        return f"no group size of {', '.join(map(str, GROUP_SIZES))} divides both {inputs[0]} and {inputs[1]}"
    return f"group sizes that fit this model are {', '.join(map(str, sizes))}"
