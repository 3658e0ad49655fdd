"""Synthetic MLX 4-bit checkpoints with the 397B model's real layer dimensions, and any number of layers and experts.

The codes are those of Gaussian weights (so that quantizers meet the histograms they will meet in practice); a few
distinct expert matrices are made and every expert is one of them with its rows rotated, so that no two records agree.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from moepack.layout.formats import AffineFormat
from moepack.layout.tensorheader import TensorSpec, render
from moepack.quantize.affine import AffineMatrix
from moepack.quantize.methods import quantize

DISTINCT = 4
FORMAT = AffineFormat(4, 64)


@dataclass(frozen=True)
class Width:
    """Sizes of a synthetic model; the defaults are the 397B model's, with a small vocabulary."""

    layers: int = 1
    experts: int = 512
    experts_per_token: int = 10
    hidden: int = 4096
    intermediate: int = 1024
    vocab: int = 1024

    @property
    def config(self) -> dict[str, object]:
        """config.json as mlx_lm writes it for this model."""
        text = {
            "model_type": "qwen3_5_moe_text",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "layer_types": ["full_attention" if i % 4 == 3 else "linear_attention" for i in range(self.layers)],
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 64,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4,
            "moe_intermediate_size": self.intermediate,
            "shared_expert_intermediate_size": 1024,
            "num_experts": self.experts,
            "num_experts_per_tok": self.experts_per_token,
            "vocab_size": self.vocab,
            "max_position_embeddings": 262144,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000_000, "partial_rotary_factor": 0.25},
        }
        quantization = {"group_size": FORMAT.group_size, "bits": FORMAT.bits, "mode": "affine"}
        return {"model_type": "qwen3_5_moe", "text_config": text, "quantization": quantization}

    @property
    def expert_weights(self) -> int:
        """Weights in all routed experts."""
        return 3 * self.hidden * self.intermediate * self.experts * self.layers


def write_checkpoint(width: Width, directory: Path) -> None:
    """Write the checkpoint: config.json, one shard per layer and one for the rest, and their index."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(width.config, indent=2))
    shards = {"rest.safetensors": list(rest_tensors(width))}
    for layer in range(width.layers):
        shards[f"layer-{layer:02d}.safetensors"] = [*layer_tensors(width, layer), *expert_tensors(width, layer)]
    for name, tensors in shards.items():
        _write_shard(width, directory / name, tensors)
    weight_map = {tensor.name: name for name, tensors in shards.items() for tensor in tensors}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def rest_tensors(width: Width) -> Iterator[TensorSpec]:
    """Embedding, final norm and head."""
    yield TensorSpec("language_model.model.embed_tokens.weight", "BF16", (width.vocab, width.hidden))
    yield TensorSpec("language_model.model.norm.weight", "BF16", (width.hidden,))
    yield TensorSpec("language_model.lm_head.weight", "BF16", (width.vocab, width.hidden))


def layer_tensors(width: Width, layer: int) -> Iterator[TensorSpec]:
    """A decoder layer without its routed experts."""
    prefix, hidden = f"language_model.model.layers.{layer}.", width.hidden
    linear = {"in_proj_qkv": (12288, hidden), "in_proj_z": (8192, hidden), "in_proj_b": (64, hidden)}
    linear |= {"in_proj_a": (64, hidden), "out_proj": (hidden, 8192)}
    full = {"q_proj": (16384, hidden), "k_proj": (512, hidden), "v_proj": (512, hidden), "o_proj": (hidden, 8192)}
    shared = {"gate_proj": (1024, hidden), "up_proj": (1024, hidden), "down_proj": (hidden, 1024)}
    attention = ("self_attn", full) if layer % 4 == 3 else ("linear_attn", linear)
    for room, matrices in (attention, ("mlp.shared_expert", shared)):
        for name, shape in matrices.items():
            yield TensorSpec(f"{prefix}{room}.{name}.weight", "BF16", shape)
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield TensorSpec(f"{prefix}{name}.weight", "BF16", (hidden,))
    yield from _small(prefix, layer)
    yield TensorSpec(f"{prefix}mlp.gate.weight", "BF16", (width.experts, hidden))
    yield TensorSpec(f"{prefix}mlp.shared_expert_gate.weight", "BF16", (1, hidden))


def _small(prefix: str, layer: int) -> Iterator[TensorSpec]:
    if layer % 4 == 3:
        yield TensorSpec(f"{prefix}self_attn.q_norm.weight", "BF16", (256,))
        yield TensorSpec(f"{prefix}self_attn.k_norm.weight", "BF16", (256,))
        return
    yield TensorSpec(f"{prefix}linear_attn.conv1d.weight", "BF16", (12288, 4, 1))
    yield TensorSpec(f"{prefix}linear_attn.norm.weight", "BF16", (128,))
    yield TensorSpec(f"{prefix}linear_attn.A_log", "F32", (64,))
    yield TensorSpec(f"{prefix}linear_attn.dt_bias", "BF16", (64,))


def expert_tensors(width: Width, layer: int) -> Iterator[TensorSpec]:
    """A decoder layer's routed experts."""
    prefix = f"language_model.model.layers.{layer}."
    for projection, (rows, cols) in _expert_shapes(width).items():
        stem = f"{prefix}mlp.switch_mlp.{projection}_proj"
        yield TensorSpec(f"{stem}.weight", "U32", (width.experts, rows, FORMAT.words(cols)))
        yield TensorSpec(f"{stem}.scales", "BF16", (width.experts, rows, FORMAT.groups(cols)))
        yield TensorSpec(f"{stem}.biases", "BF16", (width.experts, rows, FORMAT.groups(cols)))


def _expert_shapes(width: Width) -> dict[str, tuple[int, int]]:
    narrow, wide = width.intermediate, width.hidden
    return {"gate": (narrow, wide), "up": (narrow, wide), "down": (wide, narrow)}


def _write_shard(width: Width, path: Path, tensors: list[TensorSpec]) -> None:
    with path.open("wb") as file:
        file.write(render(tensors))
        for tensor in tensors:
            for part in _values(width, tensor):
                file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)


def _values(width: Width, tensor: TensorSpec) -> Iterator[np.ndarray]:
    if ".switch_mlp." in tensor.name:
        projection = tensor.name.split("switch_mlp.")[1].split("_")[0]
        component = {"weight": "codes", "scales": "scales", "biases": "biases"}[tensor.name.rsplit(".", 1)[1]]
        samples = _samples(*_expert_shapes(width)[projection])
        start = zlib.crc32(tensor.name.rsplit(".", 1)[0].encode())  # so that no two layers agree
        for expert in range(width.experts):
            matrix = samples[expert % DISTINCT]
            yield np.roll(getattr(matrix, component), (start + expert) % matrix.codes.shape[0], axis=0)
    else:
        yield _dense(tensor)


_cache: dict[tuple[int, int], list[AffineMatrix]] = {}


def _samples(rows: int, cols: int) -> list[AffineMatrix]:
    if (rows, cols) not in _cache:
        random = np.random.default_rng(rows * 31 + cols)
        weights = (random.standard_normal((rows, cols), dtype=np.float32) / cols**0.5 for _ in range(DISTINCT))
        _cache[rows, cols] = [quantize(w, FORMAT, "minmax") for w in weights]
    return _cache[rows, cols]


def _dense(tensor: TensorSpec) -> np.ndarray:
    random = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    values = random.standard_normal(tensor.shape, dtype=np.float32)
    if tensor.name.endswith("norm.weight") or "layernorm" in tensor.name:
        values = 1 + 0.05 * values
    elif len(tensor.shape) == 2:
        values /= tensor.shape[1] ** 0.5
    return values if tensor.dtype == "F32" else values.astype(ml_dtypes.bfloat16)
