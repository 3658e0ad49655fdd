"""A model's trunk as a backend takes it over: found by canonical name, checked against the geometry, kept as stored.

An engine holds a pack's whole trunk, of which every byte was checked; a sweep takes one layer of any source at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import ml_dtypes
import numpy as np

from ..layout.formats import AffineFormat
from ..layout.matrix import Array, StoredMatrix
from ..layout.reader import Pack
from ..manifests import schema
from ..manifests.errors import CorruptInputError
from .backends.base import AttentionWeights, Backend, DeltaWeights, Floats, Matrix, Tensor
from .trunk import read_trunk

FLOATS = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32))


@dataclass(frozen=True)
class SharedExpert:
    """The expert that every token visits, and its gate [1, hidden]."""

    gate_proj: Matrix
    up_proj: Matrix
    down_proj: Matrix
    gate: Matrix


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer without its routed experts."""

    input_norm: Tensor
    post_norm: Tensor
    mixer: AttentionWeights | DeltaWeights
    router: Matrix
    shared: SharedExpert


@dataclass(frozen=True)
class Weights:
    """The whole trunk. `head` is the embedding table when the model ties them."""

    embedding: Matrix
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Matrix


class Tensors(Protocol):
    """Where trunk tensors come from: a trunk held in memory, or any source."""

    @property
    def model(self) -> schema.Model:
        """The geometry."""

    @property
    def where(self) -> str:
        """The file or folder it lies in, by which messages call it."""

    @property
    def formats(self) -> Mapping[str, AffineFormat]:
        """The format of every quantized matrix, by its stem."""

    def tensor(self, name: str) -> Array | None:
        """A tensor as FORMAT.md says it is stored; None if there is none of that name."""


@dataclass(frozen=True)
class HeldTrunk:
    """A trunk that was read whole."""

    model: schema.Model
    where: str
    formats: Mapping[str, AffineFormat]
    tensors: Mapping[str, Array]

    def tensor(self, name: str) -> Array | None:
        """The tensor itself."""
        return self.tensors.get(name)


def load(pack: Pack, backend: Backend, *, check_digest: bool) -> Weights:
    """Read the trunk of `pack`.

    Raises MismatchError if its bytes are not the manifest's, CorruptInputError if a tensor is missing or of another
    shape than the model's.
    """
    tensors = read_trunk(pack, check_digest=check_digest, memory=backend.memory)
    held = HeldTrunk(pack.model, str(pack.trunk.path), trunk_formats(pack), tensors)
    return TrunkLoader(held, backend).weights()


def trunk_formats(pack: Pack) -> dict[str, AffineFormat]:
    """The format of every quantized trunk matrix of an opened pack, by its stem."""
    return {stem: AffineFormat.parse(name) for stem, name in pack.manifest.trunk.formats.items()}


class TrunkLoader:
    """Takes parts of a trunk by canonical name. Raises CorruptInputError for what is missing or of another shape."""

    def __init__(self, tensors: Tensors, backend: Backend) -> None:
        self._tensors = tensors
        self._model = tensors.model
        self._backend = backend

    def weights(self) -> Weights:
        """All of it."""
        model = self._model
        embedding = self.embedding()
        layers = tuple(self.layer(index) for index in range(model.num_layers))
        head = embedding if model.tie_word_embeddings else self.head()
        return Weights(embedding, layers, self.norm(), head)

    def embedding(self) -> Matrix:
        """The table of embeddings [vocab, hidden]."""
        return self._matrix("model.embed_tokens", self._model.vocab_size, self._model.hidden_size)

    def head(self) -> Matrix:
        """The output head [vocab, hidden], which may be the table of embeddings."""
        if self._model.tie_word_embeddings:
            return self.embedding()
        return self._matrix("lm_head", self._model.vocab_size, self._model.hidden_size)

    def norm(self) -> Tensor:
        """The multiplier [hidden] of the norm before the head."""
        return self._vector("model.norm.weight", self._model.hidden_size)

    def layer(self, index: int) -> LayerWeights:
        """One decoder layer without its routed experts."""
        prefix, hidden = f"model.layers.{index}", self._model.hidden_size
        full = self._model.layer_types[index] == "full_attention"
        return LayerWeights(
            input_norm=self._vector(f"{prefix}.input_layernorm.weight", hidden),
            post_norm=self._vector(f"{prefix}.post_attention_layernorm.weight", hidden),
            mixer=self._attention(prefix) if full else self._delta(prefix),
            router=self._exact(f"{prefix}.mlp.gate", self._model.num_experts, hidden),
            shared=self._shared(f"{prefix}.mlp"),
        )

    def _attention(self, prefix: str) -> AttentionWeights:
        shape, hidden = self._model.full_attention, self._model.hidden_size
        width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        matrix = partial(self._in, f"{prefix}.self_attn")
        return AttentionWeights(
            query=matrix("q_proj", 2 * width, hidden),
            key=matrix("k_proj", kv_width, hidden),
            value=matrix("v_proj", kv_width, hidden),
            out=matrix("o_proj", hidden, width),
            query_norm=self._vector(f"{prefix}.self_attn.q_norm.weight", shape.head_dim),
            key_norm=self._vector(f"{prefix}.self_attn.k_norm.weight", shape.head_dim),
        )

    def _delta(self, prefix: str) -> DeltaWeights:
        shape, hidden = self._model.linear_attention, self._model.hidden_size
        width, heads = shape.num_value_heads * shape.value_head_dim, shape.num_value_heads
        channels = 2 * shape.num_key_heads * shape.key_head_dim + width
        prefix = f"{prefix}.linear_attn"
        matrix = partial(self._in, prefix)
        return DeltaWeights(
            mixed=matrix("in_proj_qkv", channels, hidden),
            gate=matrix("in_proj_z", width, hidden),
            beta=self._exact(f"{prefix}.in_proj_b", heads, hidden),
            decay=self._exact(f"{prefix}.in_proj_a", heads, hidden),
            out=matrix("out_proj", hidden, width),
            conv=self._backend.vector(self._floats(f"{prefix}.conv1d.weight", channels, shape.conv_kernel).T),
            log_decay=self._vector(f"{prefix}.A_log", heads),
            decay_bias=self._vector(f"{prefix}.dt_bias", heads),
            norm=self._vector(f"{prefix}.norm.weight", shape.value_head_dim),
        )

    def _shared(self, prefix: str) -> SharedExpert:
        hidden, intermediate = self._model.hidden_size, self._model.shared_expert_intermediate_size
        return SharedExpert(
            gate_proj=self._matrix(f"{prefix}.shared_expert.gate_proj", intermediate, hidden),
            up_proj=self._matrix(f"{prefix}.shared_expert.up_proj", intermediate, hidden),
            down_proj=self._matrix(f"{prefix}.shared_expert.down_proj", hidden, intermediate),
            gate=self._exact(f"{prefix}.shared_expert_gate", 1, hidden),
        )

    def _in(self, prefix: str, name: str, rows: int, cols: int) -> Matrix:
        return self._matrix(f"{prefix}.{name}", rows, cols)

    def _matrix(self, stem: str, rows: int, cols: int) -> Matrix:
        return self._backend.matrix(self._stored(stem, rows, cols))

    def _exact(self, stem: str, rows: int, cols: int) -> Matrix:
        return self._backend.exact_matrix(self._stored(stem, rows, cols))

    def _stored(self, stem: str, rows: int, cols: int) -> StoredMatrix:
        weight = self._tensor(f"{stem}.weight")
        format_ = self._tensors.formats.get(stem)
        if format_ is None:
            stored = StoredMatrix(weight)
        else:
            stored = StoredMatrix(weight, self._tensor(f"{stem}.scales"), self._tensor(f"{stem}.biases"), format_)
        if weight.ndim != 2 or stored.shape != (rows, cols) or (stored.format is None) != (weight.dtype in FLOATS):
            raise self._misfit(f"{stem}.weight", weight, (rows, cols))
        return stored

    def _vector(self, name: str, size: int) -> Tensor:
        return self._backend.vector(self._floats(name, size))

    def _floats(self, name: str, *shape: int) -> Floats:
        tensor = self._tensor(name)
        if tensor.shape != shape:
            raise self._misfit(name, tensor, shape)
        return tensor.astype(np.float32, copy=False)

    def _tensor(self, name: str) -> Array:
        tensor = self._tensors.tensor(name)
        if tensor is None:
            where = self._tensors.where
            raise CorruptInputError(f"{where} has no tensor {name!r}, which the model needs; build the pack again")
        return tensor

    def _misfit(self, name: str, found: Array, wanted: tuple[int, ...]) -> CorruptInputError:
        what = f"{name!r} is {found.dtype}{found.shape}"
        return CorruptInputError(f"{self._tensors.where}: {what}, but the model needs {wanted}")
