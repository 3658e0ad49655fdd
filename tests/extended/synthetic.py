"""Synthetic MLX 4-bit checkpoints as mlx_lm writes them: the 397B model's layer dimensions, any width and depth.

Weights are Gaussian, scaled so that activations stay sane, and quantized by the plain rule, so that quantizers meet the
histograms they will meet in practice. Routed experts are one of a few matrices with its rows rotated, so that no two
records agree and a gigabyte takes seconds. `Routing` says how far experts are reused from token to token.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from moepack.layout.formats import AffineFormat
from moepack.layout.tensorheader import TensorSpec, render
from moepack.quantize.affine import AffineMatrix
from moepack.quantize.methods import quantize

DISTINCT = 4  # matrices of each projection, of which all experts are made
FORMAT = AffineFormat(4, 64)
ROUTER_FORMAT = AffineFormat(8, 64)
ROUTERS = (".mlp.gate", ".mlp.shared_expert_gate")
ROUTER_GAIN, HEAD_GAIN, EXPERT_GAIN, CONV_GAIN = 1.5, 2.0, 2.0, 0.5
TAU = (0.05, 4.0)  # exp(A_log) of the heads, from long memory to short


@dataclass(frozen=True)
class Routing:
    """Which parts of a token's embedding it shares with others; what is left is the token's own.

    `popular`, of the variance: one direction for all tokens. Each router row meets it with a Gaussian number, which is
    that expert's popularity. `topical`: one direction for all tokens of a topic (token modulo `topics`), which a text
    whose tokens keep to a topic for a while turns into experts that are used again. Nothing else is changed: routers
    are Gaussian. `UNIFORM` shares nothing.
    """

    popular: float = 0.0
    topical: float = 0.0
    topics: int = 61  # odd, for every second token is a word with its space: see words.py


UNIFORM = Routing()
LOCAL = Routing(popular=0.15, topical=0.55)  # with words.STAY, like the trained 512-expert model: docs/performance.md


@dataclass(frozen=True)
class Width:
    """Sizes of a synthetic model; the defaults are the 397B model's, with a small vocabulary."""

    layers: int = 1
    experts: int = 512
    experts_per_token: int = 10
    hidden: int = 4096
    intermediate: int = 1024
    vocab: int = 1024
    heads: int = 32
    kv_heads: int = 2
    head_dim: int = 256
    key_heads: int = 16
    value_heads: int = 64
    linear_head_dim: int = 128
    routing: Routing = UNIFORM
    interval: int = 4  # every so many layers, one with full attention

    def full(self, layer: int) -> bool:
        """Whether a layer has full attention."""
        return layer % self.interval == self.interval - 1

    @property
    def text_config(self) -> dict[str, Any]:
        """The geometry as transformers' text config has it."""
        return {
            "model_type": "qwen3_5_moe_text",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "layer_types": ["full_attention" if self.full(i) else "linear_attention" for i in range(self.layers)],
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "linear_num_key_heads": self.key_heads,
            "linear_num_value_heads": self.value_heads,
            "linear_key_head_dim": self.linear_head_dim,
            "linear_value_head_dim": self.linear_head_dim,
            "linear_conv_kernel_dim": 4,
            "moe_intermediate_size": self.intermediate,
            "shared_expert_intermediate_size": self.intermediate,
            "num_experts": self.experts,
            "num_experts_per_tok": self.experts_per_token,
            "vocab_size": self.vocab,
            "max_position_embeddings": 262144,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000_000, "partial_rotary_factor": 0.25},
        }

    @property
    def config(self) -> dict[str, Any]:
        """config.json as mlx_lm writes it for this model."""
        gates = [f"language_model.model.layers.{i}{name}" for i in range(self.layers) for name in ROUTERS]
        quantization: dict[str, Any] = {"group_size": FORMAT.group_size, "bits": FORMAT.bits, "mode": "affine"}
        quantization |= {gate: {"group_size": 64, "bits": ROUTER_FORMAT.bits} for gate in gates}
        return {"model_type": "qwen3_5_moe", "text_config": self.text_config, "quantization": quantization}

    @property
    def expert_weights(self) -> int:
        """Weights in all routed experts."""
        return 3 * self.hidden * self.intermediate * self.experts * self.layers

    @property
    def linear_sizes(self) -> tuple[int, int]:
        """Channels of the convolution (queries, keys, values), and of the values alone."""
        values = self.value_heads * self.linear_head_dim
        return 2 * self.key_heads * self.linear_head_dim + values, values

    @property
    def expert_shapes(self) -> dict[str, tuple[int, int]]:
        """(rows, cols) of an expert's projections."""
        narrow, wide = self.intermediate, self.hidden
        return {"gate": (narrow, wide), "up": (narrow, wide), "down": (wide, narrow)}


def write_checkpoint(width: Width, directory: Path, experts: int | None = None) -> None:
    """Write the checkpoint: config.json, one shard per layer and one for the rest, and their index.

    Of routed experts only the first `experts` may be written; the others are then holes in the files.
    """
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(width.config, indent=2))
    weight_map = _write_shard(width, directory / "rest.safetensors", list(rest_tensors(width)), 0)
    for layer in range(width.layers):
        tensors = [*layer_tensors(width, layer), *expert_tensors(width, layer)]
        path = directory / f"layer-{layer:02d}.safetensors"
        weight_map |= _write_shard(width, path, tensors, width.experts if experts is None else experts)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_headers(width: Width, directory: Path) -> None:
    """Write the checkpoint's headers over sparse files: all that planning reads, whatever the width."""
    (directory / "config.json").write_text(json.dumps(width.config))
    weight_map = {}
    for number, tensors in enumerate(_shards(width)):
        header = render(tensors)
        path = directory / f"model-{number:05d}.safetensors"
        path.write_bytes(header)
        with path.open("r+b") as file:
            file.truncate(len(header) + sum(tensor.size for tensor in tensors))  # no block is allocated
        weight_map |= {tensor.name: path.name for tensor in tensors}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _shards(width: Width) -> Iterator[list[TensorSpec]]:
    yield [part for tensor in rest_tensors(width) for part in stored(tensor)]
    for layer in range(width.layers):
        trunk = [part for tensor in layer_tensors(width, layer) for part in stored(tensor)]
        yield [*trunk, *expert_tensors(width, layer)]


def rest_tensors(width: Width) -> Iterator[TensorSpec]:
    """Embedding, final norm and head, as they are before mlx_lm quantizes them."""
    yield TensorSpec("language_model.model.embed_tokens.weight", "BF16", (width.vocab, width.hidden))
    yield TensorSpec("language_model.model.norm.weight", "BF16", (width.hidden,))
    yield TensorSpec("language_model.lm_head.weight", "BF16", (width.vocab, width.hidden))


def layer_tensors(width: Width, layer: int) -> Iterator[TensorSpec]:
    """A decoder layer without its routed experts, as it is before mlx_lm quantizes it."""
    prefix = f"language_model.model.layers.{layer}."
    mixer = ("self_attn", _attention(width)) if width.full(layer) else ("linear_attn", _delta(width))
    shared = {f"{name}_proj": shape for name, shape in width.expert_shapes.items()}
    for room, matrices in (mixer, ("mlp.shared_expert", shared)):
        for name, shape in matrices.items():
            yield TensorSpec(f"{prefix}{room}.{name}.weight", "BF16", shape)
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield TensorSpec(f"{prefix}{name}.weight", "BF16", (width.hidden,))
    yield from _small(width, prefix, layer)
    yield TensorSpec(f"{prefix}mlp.gate.weight", "BF16", (width.experts, width.hidden))
    yield TensorSpec(f"{prefix}mlp.shared_expert_gate.weight", "BF16", (1, width.hidden))


def _attention(width: Width) -> dict[str, tuple[int, int]]:
    queries, keys = width.heads * width.head_dim, width.kv_heads * width.head_dim
    into = {"q_proj": 2 * queries, "k_proj": keys, "v_proj": keys}  # each query's gate follows it
    return {name: (rows, width.hidden) for name, rows in into.items()} | {"o_proj": (width.hidden, queries)}


def _delta(width: Width) -> dict[str, tuple[int, int]]:
    channels, values = width.linear_sizes
    into = {
        "in_proj_qkv": channels,
        "in_proj_z": values,
        "in_proj_b": width.value_heads,
        "in_proj_a": width.value_heads,
    }
    return {name: (rows, width.hidden) for name, rows in into.items()} | {"out_proj": (width.hidden, values)}


def _small(width: Width, prefix: str, layer: int) -> Iterator[TensorSpec]:
    if width.full(layer):
        yield TensorSpec(f"{prefix}self_attn.q_norm.weight", "BF16", (width.head_dim,))
        yield TensorSpec(f"{prefix}self_attn.k_norm.weight", "BF16", (width.head_dim,))
        return
    yield TensorSpec(f"{prefix}linear_attn.conv1d.weight", "BF16", (width.linear_sizes[0], 4, 1))
    yield TensorSpec(f"{prefix}linear_attn.norm.weight", "BF16", (width.linear_head_dim,))
    yield TensorSpec(f"{prefix}linear_attn.A_log", "F32", (width.value_heads,))
    yield TensorSpec(f"{prefix}linear_attn.dt_bias", "BF16", (width.value_heads,))


def expert_tensors(width: Width, layer: int) -> Iterator[TensorSpec]:
    """A decoder layer's routed experts, quantized, all of a projection in one tensor."""
    prefix = f"language_model.model.layers.{layer}."
    for projection, (rows, cols) in width.expert_shapes.items():
        stem = f"{prefix}mlp.switch_mlp.{projection}_proj"
        yield TensorSpec(f"{stem}.weight", "U32", (width.experts, rows, FORMAT.words(cols)))
        yield TensorSpec(f"{stem}.scales", "BF16", (width.experts, rows, FORMAT.groups(cols)))
        yield TensorSpec(f"{stem}.biases", "BF16", (width.experts, rows, FORMAT.groups(cols)))


def stored(tensor: TensorSpec) -> Iterator[TensorSpec]:
    """A tensor as mlx_lm leaves it: matrices of floats become codes, scales and biases."""
    if len(tensor.shape) != 2:
        yield tensor
        return
    (rows, cols), format_, stem = tensor.shape, _format(tensor), tensor.name.removesuffix(".weight")
    yield TensorSpec(f"{stem}.weight", "U32", (rows, format_.words(cols)))
    yield TensorSpec(f"{stem}.scales", "BF16", (rows, format_.groups(cols)))
    yield TensorSpec(f"{stem}.biases", "BF16", (rows, format_.groups(cols)))


def _format(tensor: TensorSpec) -> AffineFormat:
    return ROUTER_FORMAT if tensor.name.removesuffix(".weight").endswith(ROUTERS) else FORMAT


def _write_shard(width: Width, path: Path, tensors: list[TensorSpec], experts: int) -> dict[str, str]:
    """Write tensors as mlx_lm stores them, of routed experts the first few; says in which file each is."""
    header = [part for tensor in tensors for part in stored(tensor)]
    with path.open("wb") as file:
        end = file.write(render(header))
        for tensor in tensors:
            file.seek(end)
            for part in _parts(width, tensor, experts):
                file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            end += sum(part.size for part in stored(tensor))
        file.truncate(end)
    return {part.name: path.name for part in header}


def _parts(width: Width, tensor: TensorSpec, experts: int) -> Iterator[np.ndarray]:
    """What is written of a tensor, in order."""
    if ".switch_mlp." in tensor.name:
        yield from _experts(width, tensor, experts)
    elif len(tensor.shape) == 2:
        matrix = quantize(_floats(width, tensor), _format(tensor), "minmax")
        yield from (matrix.codes, matrix.scales, matrix.biases)
    else:
        values = _vector(tensor)
        yield values if tensor.dtype == "F32" else values.astype(ml_dtypes.bfloat16)


def _experts(width: Width, tensor: TensorSpec, experts: int) -> Iterator[np.ndarray]:
    """One component of the first experts of a layer, expert by expert."""
    stem, _, part = tensor.name.rpartition(".")
    projection = stem.split("switch_mlp.")[1].removesuffix("_proj")
    component = {"weight": "codes", "scales": "scales", "biases": "biases"}[part]
    gain = EXPERT_GAIN * _branch_gain(width) if projection == "down" else 1.0
    samples = _samples(*width.expert_shapes[projection], gain)
    start = zlib.crc32(stem.encode())  # so that no two layers agree
    for expert in range(experts):
        matrix = samples[expert % DISTINCT]
        yield np.roll(getattr(matrix, component), (start + expert) % matrix.codes.shape[0], axis=0)


_cache: dict[tuple[int, int, float], list[AffineMatrix]] = {}


def _samples(rows: int, cols: int, gain: float) -> list[AffineMatrix]:
    if (rows, cols, gain) not in _cache:
        random = np.random.default_rng(rows * 31 + cols)
        weights = (_gaussian(random, (rows, cols)) * np.float32(gain / cols**0.5) for _ in range(DISTINCT))
        _cache[rows, cols, gain] = [quantize(w, FORMAT, "minmax") for w in weights]
    return _cache[rows, cols, gain]


def _floats(width: Width, tensor: TensorSpec) -> np.ndarray:
    """A matrix of the trunk, float32: outputs of unit variance times the gain of its place."""
    if tensor.name.endswith("embed_tokens.weight"):
        return _embedding(width)
    return _gaussian(_random(tensor.name), tensor.shape) * np.float32(
        _gain(width, tensor.name) / tensor.shape[1] ** 0.5
    )


def _gain(width: Width, name: str) -> float:
    if name.endswith(("out_proj.weight", "o_proj.weight", "shared_expert.down_proj.weight")):
        return _branch_gain(width)
    return {"mlp.gate.weight": ROUTER_GAIN, "lm_head.weight": HEAD_GAIN}.get(".".join(name.split(".")[-3:]), 1.0)


def _branch_gain(width: Width) -> float:
    """What keeps the residual stream's variance from growing with depth: two branches a layer."""
    return (2 * width.layers) ** -0.5


def _embedding(width: Width) -> np.ndarray:
    """float32 [vocab, hidden], unit variance: what all tokens share, what those of a topic share, their own."""
    routing, random = width.routing, _random("embed_tokens")
    own = (1 - routing.popular - routing.topical) ** 0.5
    values = _gaussian(random, (width.vocab, width.hidden)) * np.float32(own)
    topics = _gaussian(random, (routing.topics, width.hidden)) * np.float32(routing.topical**0.5)
    values += topics[np.arange(width.vocab) % routing.topics]
    values += _gaussian(random, (width.hidden,)) * np.float32(routing.popular**0.5)
    return values


def _vector(tensor: TensorSpec) -> np.ndarray:
    """Norms, convolutions and the delta rule's constants, float32."""
    random = _random(tensor.name)
    if tensor.name.endswith("A_log"):
        return np.log(random.uniform(*TAU, tensor.shape)).astype(np.float32)
    if tensor.name.endswith(("dt_bias", "linear_attn.norm.weight")):
        return np.ones(tensor.shape, np.float32)
    values = _gaussian(random, tensor.shape)
    return CONV_GAIN * values if tensor.name.endswith("conv1d.weight") else 1 + np.float32(0.05) * values


def _random(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def _gaussian(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.standard_normal(shape, dtype=np.float32)
