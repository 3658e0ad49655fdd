"""transformers as the oracle: a pack's own weights, dequantized with plain numpy, in the model they came from.

Independent of the engine and of the native code: only the pack's reader is ours.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from moepack.layout.formats import AffineFormat, GridFormat
from moepack.layout.matrix import StoredMatrix
from moepack.layout.reader import Pack
from moepack.layout.record import PROJECTIONS, RecordLayout
from moepack.manifests.schema import Model

CENTERED_NORMS = ("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "model.norm")
PART_DTYPES = {"uint32": np.uint32, "uint8": np.uint8, "bfloat16": ml_dtypes.bfloat16}


def unpack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint32 [rows, words] -> codes [rows, words * 32 / bits], each row one little-endian bit stream."""
    stream = np.unpackbits(np.ascontiguousarray(codes).view(np.uint8), axis=-1, bitorder="little")
    weights = 1 << np.arange(bits, dtype=np.uint32)
    return (stream.reshape(len(codes), -1, bits) * weights).sum(-1, dtype=np.uint32)


def dequantize(codes: np.ndarray, scales: np.ndarray, biases: np.ndarray, format: AffineFormat) -> np.ndarray:
    """float32 [rows, cols]: code * scale + bias."""
    grouped = unpack_codes(codes, format.bits).astype(np.float32).reshape(*scales.shape, format.group_size)
    return (grouped * scales.astype(np.float32)[..., None] + biases.astype(np.float32)[..., None]).reshape(
        len(codes), -1
    )


def dequantize_grids(codes: np.ndarray, grids: np.ndarray, scales: np.ndarray, format: GridFormat) -> np.ndarray:
    """float32 [rows, cols]: level(grid of the group, code) * the row's scale."""
    named = grids if format.grid_bits == 8 else np.stack([grids & 15, grids >> 4], axis=-1).reshape(len(grids), -1)
    levels = format.table[np.repeat(named, format.group_size, axis=1), unpack_codes(codes, format.bits)]
    return levels.astype(np.float32) * scales.astype(np.float32)


def record_part(record: np.ndarray, layout: RecordLayout, name: str) -> np.ndarray:
    """A component of a record, such as "gate.scales", in its own dtype and shape."""
    component = layout[name]
    piece = record[component.offset : component.offset + component.size]
    return piece.view(PART_DTYPES[component.dtype]).reshape(component.shape)


def expert_matrix(record: np.ndarray, layout: RecordLayout, projection: str) -> np.ndarray:
    """One projection of an expert, float32 [rows, cols]."""
    format_ = layout.formats[projection]
    middle, last = ("grids", "scales") if isinstance(format_, GridFormat) else ("scales", "biases")
    parts = [record_part(record, layout, f"{projection}.{part}") for part in ("weight", middle, last)]
    if isinstance(format_, GridFormat):
        return dequantize_grids(parts[0], parts[1], parts[2], format_)
    return dequantize(parts[0], parts[1], parts[2], format_)


def trunk_tensors(pack: Pack) -> Iterator[tuple[str, np.ndarray]]:
    """Every trunk tensor by its canonical name, float32, quantized ones dequantized."""
    formats = pack.manifest.trunk.formats
    for name in pack.trunk.entries:
        stem, _, part = name.rpartition(".")
        if stem in formats and part == "weight":
            scales, biases = pack.trunk.read(f"{stem}.scales"), pack.trunk.read(f"{stem}.biases")
            yield name, dequantize(pack.trunk.read(name), scales, biases, AffineFormat.parse(formats[stem]))
        elif stem not in formats:
            yield name, pack.trunk.read(name).astype(np.float32)


def dense(stored: StoredMatrix) -> np.ndarray:
    """float32 [rows, cols] of a stored matrix of any format."""
    if stored.format is None:
        return stored.weight.astype(np.float32)
    if isinstance(stored.format, GridFormat):
        return dequantize_grids(stored.weight, stored.grids, stored.scales, stored.format)
    return dequantize(stored.weight, stored.scales, stored.biases, stored.format)


def dequantized_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """float32 tensors under transformers' names for Qwen3_5MoeForCausalLM; norms zero-centred again."""
    with Pack.open(path) as pack:
        state = dict(_trunk_state(pack))
        for layer in range(pack.model.num_layers):
            state |= _expert_state(pack, layer)
    if "lm_head.weight" not in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


def _trunk_state(pack: Pack) -> Iterator[tuple[str, torch.Tensor]]:
    for name, values in trunk_tensors(pack):
        if name.removesuffix(".weight").endswith(CENTERED_NORMS):
            values = values - np.float32(1)
        if name.endswith("conv1d.weight"):
            values = values[:, None, :]
        yield name, torch.from_numpy(np.ascontiguousarray(values))


def _expert_state(pack: Pack, layer: int) -> dict[str, torch.Tensor]:
    layout = pack.records[layer]
    records = [pack.read_record(layer, expert) for expert in range(pack.model.num_experts)]
    gate, up, down = (np.stack([expert_matrix(record, layout, name) for record in records]) for name in PROJECTIONS)
    prefix = f"model.layers.{layer}.mlp.experts"
    return {
        f"{prefix}.gate_up_proj": torch.from_numpy(np.concatenate([gate, up], axis=1)),
        f"{prefix}.down_proj": torch.from_numpy(down),
    }


def reference_config(model: Model) -> Any:
    """transformers' config for the geometry of a pack."""
    from transformers import Qwen3_5MoeTextConfig

    full, linear = model.full_attention, model.linear_attention
    return Qwen3_5MoeTextConfig(
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        num_hidden_layers=model.num_layers,
        layer_types=list(model.layer_types),
        num_attention_heads=full.num_heads,
        num_key_value_heads=full.num_kv_heads,
        head_dim=full.head_dim,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": full.rope_theta,
            "partial_rotary_factor": full.rotary_dims / full.head_dim,
        },
        linear_num_key_heads=linear.num_key_heads,
        linear_num_value_heads=linear.num_value_heads,
        linear_key_head_dim=linear.key_head_dim,
        linear_value_head_dim=linear.value_head_dim,
        linear_conv_kernel_dim=linear.conv_kernel,
        num_experts=model.num_experts,
        num_experts_per_tok=model.num_experts_per_tok,
        moe_intermediate_size=model.moe_intermediate_size,
        shared_expert_intermediate_size=model.shared_expert_intermediate_size,
        rms_norm_eps=model.rms_norm_eps,
        max_position_embeddings=model.max_position_embeddings,
        tie_word_embeddings=model.tie_word_embeddings,
    )


def reference_model(path: Path) -> Any:
    """Qwen3_5MoeForCausalLM, float32, with the dequantized weights of the pack at `path`."""
    from transformers import Qwen3_5MoeForCausalLM

    with Pack.open(path) as pack:
        config = reference_config(pack.model)
    model = Qwen3_5MoeForCausalLM(config).float().eval()
    model.load_state_dict(dequantized_state_dict(path), strict=True)
    return model
