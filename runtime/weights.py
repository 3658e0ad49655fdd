"""The trunk in memory: read once with pread into anonymous memory, checked, and handed to a backend as stored."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from blake3 import blake3

from ..layout.formats import AffineFormat
from ..layout.reader import Pack
from ..manifests import schema
from ..manifests.errors import CorruptInputError, MismatchError
from ..manifests.files import open_regular, read_exactly
from .backends.base import AttentionWeights, Backend, DeltaWeights, Floats, Matrix, StoredMatrix, Tensor

Array = np.ndarray[Any, np.dtype[Any]]
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


def load(pack: Pack, backend: Backend, *, check_digest: bool) -> Weights:
    """Read the trunk of `pack`. Raises MismatchError if its bytes are not the manifest's, CorruptInputError if a

    tensor is missing or of another shape than the model's.
    """
    tensors = read_trunk(pack, check_digest=check_digest)
    return _Loader(pack, backend, tensors).weights()


def read_trunk(pack: Pack, *, check_digest: bool) -> dict[str, Array]:
    """Every tensor of the trunk, in its own dtype; the digest is of exactly the bytes that are returned."""
    hasher = blake3(max_threads=blake3.AUTO)
    entries = sorted(pack.trunk.entries.values(), key=lambda entry: entry.offset)
    hasher.update(_prefix(pack, entries[0].offset if entries else pack.trunk.size))
    tensors = {}
    for entry in entries:
        tensors[entry.name] = pack.trunk.read(entry.name)
        if check_digest:
            hasher.update(tensors[entry.name].reshape(-1).view(np.uint8).data)
    listed = next(file for file in pack.manifest.files if file.name == pack.manifest.trunk.file)
    if check_digest and hasher.hexdigest() != listed.blake3:
        raise MismatchError(
            f"{pack.trunk.path} is damaged: its bytes differ from the manifest's digest; fetch or build the pack again"
        )
    return tensors


def _prefix(pack: Pack, size: int) -> bytes:
    prefix = bytearray(size)
    with open(open_regular(pack.trunk.path), "rb", buffering=0) as file:  # noqa: PTH123 (a descriptor, not a path)
        read_exactly(file.fileno(), memoryview(prefix), 0, pack.trunk.path)
    return bytes(prefix)


class _Loader:
    """Finds tensors by canonical name and checks every shape against the model's."""

    def __init__(self, pack: Pack, backend: Backend, tensors: dict[str, Array]) -> None:
        self._path = pack.trunk.path
        self._model = pack.model
        self._formats = pack.manifest.trunk.formats
        self._backend = backend
        self._tensors = tensors

    def weights(self) -> Weights:
        model = self._model
        table = (model.vocab_size, model.hidden_size)
        embedding = self._matrix("model.embed_tokens", *table)
        layers = tuple(self._layer(index, kind) for index, kind in enumerate(model.layer_types))
        norm = self._vector("model.norm.weight", model.hidden_size)
        head = embedding if model.tie_word_embeddings else self._matrix("lm_head", *table)
        return Weights(embedding, layers, norm, head)

    def _layer(self, index: int, kind: schema.LayerType) -> LayerWeights:
        prefix, hidden = f"model.layers.{index}", self._model.hidden_size
        return LayerWeights(
            input_norm=self._vector(f"{prefix}.input_layernorm.weight", hidden),
            post_norm=self._vector(f"{prefix}.post_attention_layernorm.weight", hidden),
            mixer=self._attention(prefix) if kind == "full_attention" else self._delta(prefix),
            router=self._matrix(f"{prefix}.mlp.gate", self._model.num_experts, hidden),
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
            beta=matrix("in_proj_b", heads, hidden),
            decay=matrix("in_proj_a", heads, hidden),
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
            gate=self._matrix(f"{prefix}.shared_expert_gate", 1, hidden),
        )

    def _in(self, prefix: str, name: str, rows: int, cols: int) -> Matrix:
        return self._matrix(f"{prefix}.{name}", rows, cols)

    def _matrix(self, stem: str, rows: int, cols: int) -> Matrix:
        weight = self._tensor(f"{stem}.weight")
        if stem in self._formats:
            format_ = AffineFormat.parse(self._formats[stem])
            stored = StoredMatrix(weight, self._tensor(f"{stem}.scales"), self._tensor(f"{stem}.biases"), format_)
        else:
            stored = StoredMatrix(weight)
        if weight.ndim != 2 or stored.shape != (rows, cols) or (stored.format is None) != (weight.dtype in FLOATS):
            raise self._misfit(f"{stem}.weight", weight, (rows, cols))
        return self._backend.matrix(stored)

    def _vector(self, name: str, size: int) -> Tensor:
        return self._backend.vector(self._floats(name, size))

    def _floats(self, name: str, *shape: int) -> Floats:
        tensor = self._tensor(name)
        if tensor.shape != shape:
            raise self._misfit(name, tensor, shape)
        return tensor.astype(np.float32)

    def _tensor(self, name: str) -> Array:
        if name not in self._tensors:
            raise CorruptInputError(f"{self._path} has no tensor {name!r}, which the model needs; build the pack again")
        return self._tensors[name]

    def _misfit(self, name: str, found: Array, wanted: tuple[int, ...]) -> CorruptInputError:
        return CorruptInputError(f"{self._path}: {name!r} is {found.dtype}{found.shape}, but the model needs {wanted}")
