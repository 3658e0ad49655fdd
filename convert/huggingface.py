"""The Hugging Face dialect: experts fused or one by one, norms centred on zero; floats, FP8 or GPTQ codes.

As transformers writes it. Vision towers and multi-token prediction are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..layout.plan import expert_shape
from ..layout.record import PROJECTIONS, ExpertShape
from ..manifests.errors import UnsupportedError
from ..manifests.schema import Model
from ..quantize.affine import AffineMatrix
from . import fp8, gptq
from .checkpoint import Checkpoint
from .families.family import ExpertNames, Family, Role, TrunkTensor, layer_prefix
from .fp8 import Fp8Matrices
from .gptq import GptqMatrices
from .matrices import read_rows, read_stacked
from .shelf import Shelf
from .tensors import Encoding, Fp8, Gptq, LayerExperts, Plain, Scratch, Source, TrunkEntry, Weights

PREFIXES = {"model.language_model.": "model."}


class Matrices(Protocol):
    """How a checkpoint stores matrices: takes them off the shelf, with all that belongs to them."""

    def __contains__(self, name: str) -> bool:
        """Whether there is a matrix called `name`, in whatever encoding."""

    def take(self, name: str, shape: tuple[int, ...]) -> Encoding:
        """The matrix called `name`. Raises CorruptInputError or UnsupportedError naming a tensor that is amiss."""

    def take_stack(self, name: str, shape: tuple[int, ...]) -> Plain | Fp8:
        """The stack of matrices called `name`, like `take`."""


@dataclass(frozen=True)
class FloatMatrices:
    """Matrices of a checkpoint that is not quantized."""

    shelf: Shelf

    def __contains__(self, name: str) -> bool:
        return name in self.shelf

    def take(self, name: str, shape: tuple[int, ...]) -> Plain:
        """The matrix called `name`."""
        return self.shelf.take_plain(name, shape)

    take_stack = take


def interpret(checkpoint: Checkpoint, family: Family, model: Model) -> Source:
    """Find every tensor of `model`. Raises CorruptInputError or UnsupportedError naming the first that is amiss."""
    shelf = Shelf(checkpoint, PREFIXES, family.left_out)
    matrices = _matrices(checkpoint.config, shelf)
    shelf.set_aside(family.unused(model), "an output head that is tied to the embedding")
    trunk = tuple(_trunk_entry(shelf, matrices, tensor) for tensor in family.trunk(model))
    prefixes = map(layer_prefix, range(model.num_layers))
    experts = tuple(_experts(shelf.checkpoint, matrices, family.experts, model, prefix) for prefix in prefixes)
    shelf.finish()
    return Source(checkpoint, "huggingface", model, trunk, experts, shelf.left_out)


def _matrices(config: Mapping[str, Any], shelf: Shelf) -> Matrices:
    quantization = _quantization(config)
    if quantization is None:
        return FloatMatrices(shelf)
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method == fp8.METHOD:
        return Fp8Matrices.declared(quantization, shelf)
    if method == gptq.METHOD:
        return GptqMatrices.declared(quantization, shelf)
    raise UnsupportedError(
        f"the checkpoint is quantized with {method!r:.40}; readable are bf16, fp16 and fp32 weights, fp8 in blocks,"
        " gptq, or MLX affine"
    )


def _quantization(config: Mapping[str, Any]) -> Any:
    """The quantization_config of the model, or of its text part; None if there is none."""
    places = (config, config.get("text_config"))
    return next((found for at in places if isinstance(at, dict) and (found := at.get("quantization_config"))), None)


def _trunk_entry(shelf: Shelf, matrices: Matrices, tensor: TrunkTensor) -> TrunkEntry:
    if tensor.role.is_matrix:
        encoding = matrices.take(tensor.name, tensor.shape)
        if isinstance(encoding, Gptq):
            encoding = gptq.settled(shelf.checkpoint, encoding, tensor.shape[-1])
        return TrunkEntry(tensor, encoding)
    shape = tensor.shape
    if tensor.role is Role.CONVOLUTION:
        shape = (shape[0], 1, shape[1])
    shift = 1.0 if tensor.role is Role.CENTERED_NORM else 0.0
    return TrunkEntry(tensor, shelf.take_plain(tensor.name, shape), shift)


def _experts(checkpoint: Checkpoint, matrices: Matrices, names: ExpertNames, model: Model, prefix: str) -> LayerExperts:
    shape = expert_shape(model)
    if prefix + names.separate.format(expert=0, projection="gate") in matrices:
        return _separate(checkpoint, matrices, prefix + names.separate, shape, model.num_experts)
    gate_up = matrices.take_stack(prefix + names.gate_up, (model.num_experts, 2 * shape.intermediate, shape.hidden))
    down = matrices.take_stack(prefix + names.down, (model.num_experts, *shape.of("down")))
    return FusedExperts(checkpoint, gate_up, down, shape)


def _separate(
    checkpoint: Checkpoint, matrices: Matrices, name: str, shape: ExpertShape, experts: int
) -> "SeparateExperts":
    def take(expert: int, projection: str) -> Encoding:
        return matrices.take(name.format(expert=expert, projection=projection), shape.of(projection))

    def take_all(expert: int) -> dict[str, Encoding]:
        return {projection: take(expert, projection) for projection in PROJECTIONS}

    return SeparateExperts(checkpoint, shape, tuple(map(take_all, range(experts))))


@dataclass(frozen=True)
class FusedExperts:
    """gate_up_proj [experts, 2 intermediate, hidden], gate's rows first; down_proj [experts, hidden, intermediate]."""

    checkpoint: Checkpoint
    gate_up: Plain | Fp8
    down: Plain | Fp8
    shape: ExpertShape

    @property
    def encodings(self) -> Mapping[str, Plain | Fp8]:
        """How each projection of every expert is stored."""
        return {"gate": self.gate_up, "up": self.gate_up, "down": self.down}

    def read(self, expert: int, scratch: Scratch, into: Mapping[str, AffineMatrix]) -> dict[str, Weights]:
        """The three matrices of one expert, as `read_stacked` gives them; gate and up come in one read."""
        rows, cols = self.shape.of("gate")
        gate_up = read_stacked(self.checkpoint, self.gate_up, (2 * rows, cols), expert, scratch, "gate_up")
        down = read_stacked(self.checkpoint, self.down, self.shape.of("down"), expert, scratch, "down")
        return {"gate": gate_up[:rows], "up": gate_up[rows:], "down": down}

    def stored(self, expert: int, projection: str) -> str:
        """The name of the checkpoint's tensor that holds a matrix."""
        return self.encodings[projection].stored


@dataclass(frozen=True)
class SeparateExperts:
    """Three matrices for each expert, each with tensors of its own."""

    checkpoint: Checkpoint
    shape: ExpertShape
    tensors: tuple[Mapping[str, Encoding], ...]

    @property
    def encodings(self) -> Mapping[str, Encoding]:
        """How each projection of the first expert is stored; nothing of it passes through."""
        return self.tensors[0]

    def read(self, expert: int, scratch: Scratch, into: Mapping[str, AffineMatrix]) -> dict[str, Weights]:
        """The three matrices of one expert, as `read_rows` gives them."""
        return {
            projection: read_rows(self.checkpoint, encoding, self.shape.of(projection), 0, scratch, projection)
            for projection, encoding in self.tensors[expert].items()
        }

    def stored(self, expert: int, projection: str) -> str:
        """The name of the checkpoint's tensor that holds a matrix."""
        return self.tensors[expert][projection].stored
