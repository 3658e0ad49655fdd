"""The Hugging Face dialect: float weights, experts fused or one by one, norms centred on zero.

As transformers writes it. Vision towers and multi-token prediction are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..layout.plan import expert_shape
from ..layout.record import PROJECTIONS, ExpertShape
from ..layout.tensorfile import ARRAY_DTYPES
from ..manifests.errors import UnsupportedError
from ..manifests.schema import Model
from ..quantize.affine import AffineMatrix
from .checkpoint import Checkpoint
from .families.family import ExpertNames, Family, Role, TrunkTensor, layer_prefix
from .shelf import Shelf
from .tensors import LayerExperts, Plain, Scratch, Source, TrunkEntry, Weights

PREFIXES = {"model.language_model.": "model."}


def interpret(checkpoint: Checkpoint, family: Family, model: Model) -> Source:
    """Find every tensor of `model`. Raises CorruptInputError or UnsupportedError naming the first that is amiss."""
    _refuse_quantized(checkpoint)
    shelf = Shelf(checkpoint, PREFIXES, family.left_out)
    shelf.set_aside(family.unused(model), "an output head that is tied to the embedding")
    trunk = tuple(_trunk_entry(shelf, tensor) for tensor in family.trunk(model))
    experts = tuple(_experts(shelf, family.experts, model, layer_prefix(layer)) for layer in range(model.num_layers))
    shelf.finish()
    return Source(checkpoint, "huggingface", model, trunk, experts, shelf.left_out)


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    for config in (checkpoint.config, checkpoint.config.get("text_config")):
        if isinstance(config, dict) and (quantization := config.get("quantization_config")):
            method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
            raise UnsupportedError(
                f"the checkpoint is quantized with {method!r}; readable are bf16, fp16 and fp32 weights, or MLX affine"
            )


def _trunk_entry(shelf: Shelf, tensor: TrunkTensor) -> TrunkEntry:
    shape = tensor.shape
    if tensor.role is Role.CONVOLUTION:
        shape = (shape[0], 1, shape[1])
    shift = 1.0 if tensor.role is Role.CENTERED_NORM else 0.0
    return TrunkEntry(tensor, shelf.take_plain(tensor.name, shape), shift)


def _experts(shelf: Shelf, names: ExpertNames, model: Model, prefix: str) -> LayerExperts:
    shape = expert_shape(model)
    if prefix + names.separate.format(expert=0, projection="gate") in shelf:
        return _separate(shelf, prefix + names.separate, shape, model.num_experts)
    gate_up = shelf.take_plain(prefix + names.gate_up, (model.num_experts, 2 * shape.intermediate, shape.hidden))
    down = shelf.take_plain(prefix + names.down, (model.num_experts, *shape.of("down")))
    return FusedExperts(shelf.checkpoint, gate_up, down, shape)


def _separate(shelf: Shelf, name: str, shape: ExpertShape, experts: int) -> "SeparateExperts":
    def take(expert: int, projection: str) -> Plain:
        return shelf.take_plain(name.format(expert=expert, projection=projection), shape.of(projection))

    tensors = tuple({projection: take(expert, projection) for projection in PROJECTIONS} for expert in range(experts))
    return SeparateExperts(shelf.checkpoint, shape, tensors)


@dataclass(frozen=True)
class FusedExperts:
    """gate_up_proj [experts, 2 intermediate, hidden], gate's rows first; down_proj [experts, hidden, intermediate]."""

    checkpoint: Checkpoint
    gate_up: Plain
    down: Plain
    shape: ExpertShape

    @property
    def encodings(self) -> Mapping[str, Plain]:
        """How each projection of every expert is stored."""
        return {"gate": self.gate_up, "up": self.gate_up, "down": self.down}

    def read(self, expert: int, scratch: Scratch, into: Mapping[str, AffineMatrix]) -> dict[str, Weights]:
        """The three matrices of one expert, in the checkpoint's dtype; gate and up come in one read."""
        rows, cols = self.shape.of("gate")
        gate_up = scratch.array("gate_up", (2 * rows, cols), ARRAY_DTYPES[self.gate_up.dtype])
        down = scratch.array("down", self.shape.of("down"), ARRAY_DTYPES[self.down.dtype])
        self.checkpoint.read_into(self.gate_up.stored, gate_up, expert)
        self.checkpoint.read_into(self.down.stored, down, expert)
        return {"gate": gate_up[:rows], "up": gate_up[rows:], "down": down}

    def stored(self, expert: int, projection: str) -> str:
        """The name of the checkpoint's tensor that holds a matrix."""
        return self.encodings[projection].stored


@dataclass(frozen=True)
class SeparateExperts:
    """Three tensors for each expert."""

    checkpoint: Checkpoint
    shape: ExpertShape
    tensors: tuple[Mapping[str, Plain], ...]

    @property
    def encodings(self) -> Mapping[str, Plain]:
        """How each projection of the first expert is stored; all are floats."""
        return self.tensors[0]

    def read(self, expert: int, scratch: Scratch, into: Mapping[str, AffineMatrix]) -> dict[str, Weights]:
        """The three matrices of one expert, in the checkpoint's dtype."""
        matrices: dict[str, Weights] = {}
        for projection, tensor in self.tensors[expert].items():
            out = scratch.array(projection, self.shape.of(projection), ARRAY_DTYPES[tensor.dtype])
            self.checkpoint.read_into(tensor.stored, out)
            matrices[projection] = out
        return matrices

    def stored(self, expert: int, projection: str) -> str:
        """The name of the checkpoint's tensor that holds a matrix."""
        return self.tensors[expert][projection].stored
