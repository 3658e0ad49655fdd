"""The golden packs' checkpoint: a small Qwen3.5-MoE whose weights come of an integer hash, so that no library decides.

Not a model that means anything, but one that runs. Its bytes never change; what the packs need besides goes into
another checkpoint.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moepack.layout.tensorheader import TensorSpec, render

LAYERS, EXPERTS, HIDDEN, INTERMEDIATE, VOCAB = 4, 3, 64, 32, 96
HEADS, KV_HEADS, HEAD_DIM = 2, 1, 32
KEY_HEADS, VALUE_HEADS, LINEAR_DIM, KERNEL = 1, 2, 32, 4
KEYS, VALUES = KEY_HEADS * LINEAR_DIM, VALUE_HEADS * LINEAR_DIM
FULL = {3}  # layers of full attention

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3_5MoeForCausalLM"],
    "model_type": "qwen3_5_moe_text",
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "layer_types": ["full_attention" if layer in FULL else "linear_attention" for layer in range(LAYERS)],
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "linear_num_key_heads": KEY_HEADS,
    "linear_num_value_heads": VALUE_HEADS,
    "linear_key_head_dim": LINEAR_DIM,
    "linear_value_head_dim": LINEAR_DIM,
    "linear_conv_kernel_dim": KERNEL,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": INTERMEDIATE,
    "shared_expert_intermediate_size": INTERMEDIATE,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
}
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {f"w{n}": n for n in range(VOCAB)}, "unk_token": "w0"},
}


def write_checkpoint(directory: Path) -> None:
    """Write config.json, tokenizer.json and model.safetensors, bfloat16."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2))
    (directory / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    shapes = dict(tensors())
    with (directory / "model.safetensors").open("wb") as file:
        file.write(render([TensorSpec(name, "BF16", shape) for name, shape in shapes.items()]))
        for number, (name, shape) in enumerate(shapes.items()):
            file.write(bfloat16(values(number, name, shape)))


def tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and shape of every tensor, in the order of the file."""
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)
    for layer in range(LAYERS):
        room, parts = ("self_attn", attention()) if layer in FULL else ("linear_attn", delta())
        parts = {f"{room}.{name}": shape for name, shape in parts.items()}
        parts |= {"input_layernorm.weight": (HIDDEN,), "post_attention_layernorm.weight": (HIDDEN,)}
        parts |= {"mlp.gate.weight": (EXPERTS, HIDDEN), "mlp.shared_expert_gate.weight": (1, HIDDEN)}
        for home in ("shared_expert", *(f"experts.{expert}" for expert in range(EXPERTS))):
            parts |= {f"mlp.{home}.{name}_proj.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
            parts |= {f"mlp.{home}.down_proj.weight": (HIDDEN, INTERMEDIATE)}
        yield from ((f"model.layers.{layer}.{name}", shape) for name, shape in parts.items())


def attention() -> dict[str, tuple[int, ...]]:
    """Tensors of full attention."""
    matrices = {"q_proj": 2 * HEADS * HEAD_DIM, "k_proj": KV_HEADS * HEAD_DIM, "v_proj": KV_HEADS * HEAD_DIM}
    into: dict[str, tuple[int, ...]] = {f"{name}.weight": (rows, HIDDEN) for name, rows in matrices.items()}
    norms = {f"{name}_norm.weight": (HEAD_DIM,) for name in "qk"}
    return {**into, "o_proj.weight": (HIDDEN, HEADS * HEAD_DIM), **norms}


def delta() -> dict[str, tuple[int, ...]]:
    """Tensors of linear attention."""
    channels = 2 * KEYS + VALUES
    matrices = {"qkv": channels, "z": VALUES, "b": VALUE_HEADS, "a": VALUE_HEADS}
    return {
        **{f"in_proj_{name}.weight": (rows, HIDDEN) for name, rows in matrices.items()},
        "out_proj.weight": (HIDDEN, VALUES),
        "conv1d.weight": (channels, 1, KERNEL),
        "norm.weight": (LINEAR_DIM,),
        "A_log": (VALUE_HEADS,),
        "dt_bias": (VALUE_HEADS,),
    }


def values(number: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Tensor `number`: sums of four hashed bytes, which look Gaussian, times a power of two: exact, as float32."""
    count = int(np.prod(shape))
    bytes_ = hashed(np.arange(count, dtype=np.uint64) + (np.uint64(number) << np.uint64(32))).view(np.uint8)
    sums = bytes_.reshape(count, 8)[:, :4].sum(1, dtype=np.int32) - 510  # standard deviation 148
    scaled = sums.astype(np.float32) * np.float32(2.0 ** exponent(name, shape))
    return scaled + np.float32("linear_attn.norm" in name)


def exponent(name: str, shape: tuple[int, ...]) -> int:
    """Of the power of two that keeps activations sane."""
    if "embed_tokens" in name or len(shape) == 3:
        return -8
    return -10 if len(shape) == 2 else -11


def hashed(numbers: np.ndarray) -> np.ndarray:
    """splitmix64's mixing of 64-bit integers."""
    with np.errstate(over="ignore"):
        mixed = numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))).astype("<u8")


def bfloat16(numbers: np.ndarray) -> bytes:
    """The upper half of each float32, which drops bits that no one needs here."""
    return (numbers.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
