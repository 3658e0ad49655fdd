"""The MLX dialect, as mlx_lm.convert writes it: affine codes or floats, experts stacked under `switch_mlp`.

Norm weights are multipliers already and the convolution is [channels, kernel, 1], quantized or not. Which modules
are quantized, and how, is read off their tensors and checked against config.json's `quantization`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..layout.formats import AffineFormat
from ..layout.plan import expert_shape
from ..layout.record import PROJECTIONS, ExpertShape
from ..layout.tensorfile import ARRAY_DTYPES
from ..manifests.errors import CorruptInputError, UnsupportedError
from ..manifests.schema import Model
from ..quantize.affine import AffineMatrix
from .checkpoint import Checkpoint
from .families.family import Family, Role, TrunkTensor, layer_prefix
from .shelf import Shelf
from .tensors import FLOATS, Affine, Encoding, Scratch, Source, TrunkEntry, Weights, read_affine

PREFIXES = {"language_model.": ""}
DEFAULT_GROUP_SIZE = 64  # what a null in config.json means to MLX
DEFAULT_BITS = 4


def speaks(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is MLX's: nobody else stacks experts under `switch_mlp`."""
    return any(".switch_mlp." in name for name in checkpoint.entries)


def interpret(checkpoint: Checkpoint, family: Family, model: Model) -> Source:
    """Find every tensor of `model`. Raises CorruptInputError or UnsupportedError naming the first that is amiss."""
    shelf = Shelf(checkpoint, PREFIXES, family.left_out)
    reader = _Reader(shelf, _declared_formats(checkpoint.config, shelf))
    shelf.set_aside(family.unused(model), "an output head that is tied to the embedding")
    trunk = tuple(reader.trunk_entry(tensor) for tensor in family.trunk(model))
    stems = [layer_prefix(layer) + family.experts.stacked for layer in range(model.num_layers)]
    experts = tuple(reader.experts(model, stem) for stem in stems)
    shelf.finish()
    return Source(checkpoint, "mlx", model, trunk, experts, shelf.left_out)


BitsAndGroupSize = tuple[int, int]


@dataclass(frozen=True)
class _Declared:
    """What `quantization` says: of quantized modules in general (None if it is missing) and of single ones.

    A module under None must be floats; one without an entry is floats or as modules are in general.
    """

    general: BitsAndGroupSize | None
    modules: Mapping[str, BitsAndGroupSize | None]

    def require(self, stem: str, format: AffineFormat) -> None:
        """Raise CorruptInputError unless a module stored in `format` may be so."""
        declared = self.modules.get(stem, self.general)
        if declared != (format.bits, format.group_size):
            says = f"says {declared[0]} bits, groups of {declared[1]}" if declared else "does not say so"
            raise CorruptInputError(
                f"tensor '{stem}.weight' is stored as {format.name}, but config.json's quantization {says}"
            )


def _declared_formats(config: Mapping[str, Any], shelf: Shelf) -> _Declared:
    """What config.json declares, modules by canonical name. Raises UnsupportedError for other modes than affine."""
    quantization = config.get("quantization")
    if quantization is None:
        return _Declared(None, {})
    if not isinstance(quantization, dict):
        raise CorruptInputError(f"config.json has quantization = {quantization!r:.40}, which is not an object")
    _check_mode(quantization, "quantization")
    declared: dict[str, BitsAndGroupSize | None] = {}
    for module, value in quantization.items():
        if value is False:
            declared[shelf.canonical(module)] = None
        elif isinstance(value, dict):
            _check_mode(value, module)
            declared[shelf.canonical(module)] = _bits_and_group_size(value, quantization, module)
    return _Declared(_bits_and_group_size(quantization, {}, "the model"), declared)


def _check_mode(settings: Mapping[str, Any], where: str) -> None:
    mode = settings.get("mode")
    if mode not in (None, "affine"):
        raise UnsupportedError(f"config.json quantizes {where} in mode {mode!r:.40}; readable is 'affine' only")


def _bits_and_group_size(value: Mapping[str, Any], default: Mapping[str, Any], module: str) -> BitsAndGroupSize:
    bits = value.get("bits", default.get("bits")) or DEFAULT_BITS
    group_size = value.get("group_size", default.get("group_size")) or DEFAULT_GROUP_SIZE
    if type(bits) is not int or type(group_size) is not int:
        raise CorruptInputError(f"config.json quantizes {module} with bits {bits!r:.40}, group_size {group_size!r:.40}")
    return bits, group_size


@dataclass(frozen=True)
class _Reader:
    shelf: Shelf
    declared: _Declared

    def trunk_entry(self, tensor: TrunkTensor) -> TrunkEntry:
        if tensor.role is Role.CONVOLUTION:
            return TrunkEntry(tensor, self.shelf.take_plain(tensor.name, (*tensor.shape, 1)))
        if tensor.role.is_matrix:
            return TrunkEntry(tensor, self.encoding(tensor.stem, tensor.shape))
        return TrunkEntry(tensor, self.shelf.take_plain(tensor.name, tensor.shape))

    def experts(self, model: Model, stem: str) -> "StackedExperts":
        shape = expert_shape(model)
        encodings: dict[str, Encoding] = {
            projection: self.encoding(stem.format(projection=projection), (model.num_experts, *shape.of(projection)))
            for projection in PROJECTIONS
        }
        return StackedExperts(self.shelf.checkpoint, shape, encodings)

    def encoding(self, stem: str, shape: tuple[int, ...]) -> Encoding:
        """How module `stem`, whose weights are of `shape`, is stored."""
        if f"{stem}.scales" not in self.shelf and self.declared.modules.get(stem) is None:
            return self.shelf.take_plain(f"{stem}.weight", shape)
        format_ = self._format(stem, shape[-1])
        self.declared.require(stem, format_)
        scales = self.shelf.take(f"{stem}.scales", FLOATS, (*shape[:-1], format_.groups(shape[-1])))
        biases = self.shelf.take(f"{stem}.biases", (scales.dtype,), scales.shape)
        codes = self.shelf.take(f"{stem}.weight", ("U32",), (*shape[:-1], format_.words(shape[-1])))
        return Affine(codes.name, scales.name, biases.name, format_, scales.dtype)

    def _format(self, stem: str, cols: int) -> AffineFormat:
        codes, scales = self.shelf.peek(f"{stem}.weight"), self.shelf.peek(f"{stem}.scales")
        words, groups = codes.shape[-1:], scales.shape[-1:]
        try:
            return AffineFormat(words[0] * 32 // cols, cols // groups[0])
        except (ValueError, ZeroDivisionError, IndexError):
            raise CorruptInputError(
                f"tensors {codes.name!r} {list(codes.shape)} and {scales.name!r} {list(scales.shape)} are no affine"
                f" codes of {cols} inputs"
            ) from None


@dataclass(frozen=True)
class StackedExperts:
    """Each projection of all experts in one stack [experts, rows, cols], as floats or affine codes."""

    checkpoint: Checkpoint
    shape: ExpertShape
    encodings: Mapping[str, Encoding]

    def read(self, expert: int, scratch: Scratch, into: Mapping[str, AffineMatrix]) -> dict[str, Weights]:
        """The three matrices of one expert, those named in `into` read right there."""
        return {projection: self._read(expert, projection, scratch, into) for projection in PROJECTIONS}

    def _read(self, expert: int, projection: str, scratch: Scratch, into: Mapping[str, AffineMatrix]) -> Weights:
        encoding, shape = self.encodings[projection], self.shape.of(projection)
        if isinstance(encoding, Affine):
            matrix = into.get(projection) or scratch.affine(projection, shape, encoding.format, encoding.dtype)
            read_affine(self.checkpoint, encoding, matrix, expert)
            return matrix
        out = scratch.array(projection, shape, ARRAY_DTYPES[encoding.dtype])
        self.checkpoint.read_into(encoding.stored, out, expert)
        return out

    def stored(self, expert: int, projection: str) -> str:
        """The name of the checkpoint's tensor that holds a matrix."""
        return self.encodings[projection].stored
