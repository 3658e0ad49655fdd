"""Checkpoints that moe-pack refuses: one sentence that names the culprit, and nothing written."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CheckpointMaker, Variant, edit_config
from damage import Damage, truncate
from ran import Ran
from safetensors.torch import load_file, save_file

SINGLE = "model.safetensors"
NORM = "model.norm.weight"
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"


def edit_tensors(checkpoint: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Set tensors of a single-file checkpoint; None removes one."""
    tensors = {**load_file(checkpoint / SINGLE), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, checkpoint / SINGLE, metadata={"format": "pt"})


def edit_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a safetensors header in place, offsets and all."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])


def set_header_length(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(struct.pack("<Q", len(content)) + content[8:])


def overlap(header: dict[str, Any]) -> None:
    start, end = header[NORM]["data_offsets"]
    header[NORM]["data_offsets"] = [start - 2, end - 2]


def run_out(header: dict[str, Any]) -> None:
    start, end = header[NORM]["data_offsets"]
    header[NORM]["data_offsets"] = [start + 2**40, end + 2**40]


def not_finite(name: str, value: float) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        tensor = load_file(checkpoint / SINGLE)[name]
        tensor.view(-1)[tensor.numel() // 2] = value
        edit_tensors(checkpoint, {name: tensor})

    return damage


def drop_shard(checkpoint: Path) -> None:
    index = {
        "weight_map": dict.fromkeys(load_file(checkpoint / SINGLE), SINGLE) | {"lm_head.weight": "other.safetensors"}
    }
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    edit_tensors(checkpoint, {"lm_head.weight": None})


BAD_CHECKPOINTS: dict[str, tuple[Damage, int, tuple[str, ...]]] = {
    "missing shard": (drop_shard, 3, ("other.safetensors", "missing")),
    "truncated shard": (lambda at: truncate(at / SINGLE), 3, (SINGLE,)),
    "empty shard": (lambda at: (at / SINGLE).write_bytes(b""), 3, (SINGLE,)),
    "header longer than the file": (lambda at: set_header_length(at / SINGLE), 3, (SINGLE, "header")),
    "overlapping offsets": (lambda at: edit_header(at / SINGLE, overlap), 3, (SINGLE,)),
    "offsets out of range": (lambda at: edit_header(at / SINGLE, run_out), 3, (SINGLE,)),
    "wrong shape": (
        lambda at: edit_tensors(at, {NORM: torch.zeros(64, dtype=torch.bfloat16)}),
        3,
        (NORM, "[64]", "[128]"),
    ),
    "wrong dtype": (lambda at: edit_tensors(at, {NORM: torch.zeros(128, dtype=torch.int32)}), 3, (NORM, "I32", "BF16")),
    "wrong dtype of an expert": (
        lambda at: edit_tensors(at, {EXPERT: torch.zeros(64, 128, dtype=torch.float64)}),
        3,
        (EXPERT, "F64"),
    ),
    "8-bit floats": (
        lambda at: edit_tensors(at, {EXPERT: torch.zeros(64, 128).to(torch.float8_e4m3fn)}),
        3,
        (EXPERT, "F8_E4M3"),
    ),
    "missing tensor": (lambda at: edit_tensors(at, {NORM: None}), 3, (NORM,)),
    "missing expert": (lambda at: edit_tensors(at, {EXPERT: None}), 3, (EXPERT,)),
    "unknown tensor": (
        lambda at: edit_tensors(at, {"model.layers.0.bias": torch.zeros(2)}),
        5,
        ("model.layers.0.bias",),
    ),
    "one expert too many": (lambda at: edit_config(at, {"num_experts": 7}), 3, ("[8, 128]", "[7, 128]")),
    "the same tensor twice": (
        lambda at: edit_tensors(at, {"model.language_model.norm.weight": torch.zeros(128)}),
        3,
        (NORM, "twice"),
    ),
    "unknown architecture": (
        lambda at: edit_config(at, {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}),
        5,
        ("LlamaForCausalLM", "qwen3_5_moe"),
    ),
    "quantized otherwise": (
        lambda at: edit_config(at, {"quantization_config": {"quant_method": "awq"}}),
        5,
        ("awq", "bf16", "gptq"),
    ),
    "more experts per token than there are": (
        lambda at: edit_config(at, {"num_experts_per_tok": 9}),
        3,
        ("num_experts_per_tok",),
    ),
    "architectures that are a number": (lambda at: edit_config(at, {"architectures": 5}), 3, ("architectures",)),
    "architectures that are one name": (
        lambda at: edit_config(at, {"architectures": "Qwen3_5MoeForCausalLM"}),
        3,
        ("architectures",),
    ),
    "a number beyond all floats": (lambda at: edit_config(at, {"rms_norm_eps": 10**400}), 3, ("rms_norm_eps",)),
    "more layers than any model": (
        lambda at: edit_config(at, {"num_hidden_layers": 300_000_000, "layer_types": None}),
        3,
        ("num_hidden_layers", "4096"),
    ),
    "no config": (lambda at: (at / "config.json").unlink(), 3, ("config.json",)),
    "a config that is not JSON": (lambda at: (at / "config.json").write_text("{"), 3, ("config.json",)),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
@pytest.mark.parametrize("command", ["plan", "build"])
def test_bad_checkpoints_are_refused_before_anything_is_written(
    case: str, command: str, checkpoint: Path, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    damage, code, culprits = BAD_CHECKPOINTS[case]
    damage(checkpoint)
    arguments = [tmp_path / "pack"] if command == "build" else []
    moe_pack(command, checkpoint, *arguments).refused(code, *culprits)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [EXPERT, NORM, "model.embed_tokens.weight", "model.layers.0.linear_attn.A_log"])
@pytest.mark.parametrize("trunk", ["source", "affine4-g64"])
def test_weights_that_are_no_numbers_are_named(
    name: str, value: float, trunk: str, checkpoint: Path, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    not_finite(name, value)(checkpoint)
    expert = ("expert 2", "up") if name == EXPERT else ()
    ran = moe_pack("build", checkpoint, tmp_path / "pack", "--trunk", trunk)
    ran.refused(3, name, "NaN or infinity", f"; remove {tmp_path / 'pack.partial'}, or mend", *expert)
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("part", ["scales", "biases"])
@pytest.mark.parametrize("expert_format", ["affine4-g64", "affine2-g64"])
@pytest.mark.parametrize("module", ["model.layers.1.mlp.switch_mlp.down_proj", "lm_head"])
def test_codes_whose_scales_are_no_numbers_are_named(
    part: str,
    expert_format: str,
    module: str,
    make_checkpoint: CheckpointMaker,
    tmp_path: Path,
    moe_pack: Callable[..., Ran],
) -> None:
    checkpoint = make_checkpoint.copy(Variant(dialect="mlx", bits=4), tmp_path / "checkpoint")
    not_finite(f"language_model.{module}.{part}", float("nan"))(checkpoint)
    done = moe_pack("build", checkpoint, tmp_path / "pack", "--expert-format", expert_format)
    done.refused(3, module, "NaN or infinity")


BAD_MLX: dict[str, tuple[Any, int, tuple[str, ...]]] = {
    "another mode": ({"mode": "mxfp4"}, 5, ("mxfp4", "affine")),
    "another mode of one module": (
        {"lm_head": {"mode": "nvfp4"}},
        5,
        ("lm_head", "nvfp4"),
    ),
    "other bits than stored": (
        {"language_model.lm_head": {"bits": 8, "group_size": 64}},
        3,
        ("lm_head", "affine4-g64"),
    ),
    "said to be floats": ({"language_model.lm_head": False}, 3, ("lm_head",)),
    "no object": (4, 3, ("quantization",)),
    "bits that are no number": ({"lm_head": {"bits": "4"}}, 3, ("lm_head", "bits")),
    "other bits in general": ({"bits": 8}, 3, ("embed_tokens.weight", "affine4-g64", "8 bits")),
    "another group size in general": ({"group_size": 32}, 3, ("embed_tokens.weight", "affine4-g64", "groups of 32")),
    "general bits that are no number": ({"bits": [4]}, 3, ("the model", "bits")),
}


@pytest.mark.parametrize("case", BAD_MLX)
def test_mlx_checkpoints_that_contradict_their_config_are_refused(
    case: str, make_checkpoint: CheckpointMaker, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    changed, code, culprits = BAD_MLX[case]
    checkpoint = make_checkpoint.copy(Variant(dialect="mlx", bits=4), tmp_path / "checkpoint")
    original = json.loads((checkpoint / "config.json").read_text())["quantization"]
    edit_config(checkpoint, {"quantization": {**original, **changed} if isinstance(changed, dict) else changed})
    moe_pack("build", checkpoint, tmp_path / "pack").refused(code, *culprits)
    assert not list(tmp_path.glob("pack*"))


def test_a_quantized_tensor_without_quantization_is_refused(
    make_checkpoint: CheckpointMaker, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    checkpoint = make_checkpoint.copy(Variant(dialect="mlx", bits=4), tmp_path / "checkpoint")
    edit_config(checkpoint, {"quantization": None, "quantization_config": None})
    moe_pack("plan", checkpoint).refused(3, "model.embed_tokens.weight", "affine4-g64", "does not say so")


def test_a_null_group_size_means_64(
    make_checkpoint: CheckpointMaker, tmp_path: Path, moe_pack: Callable[..., Ran]
) -> None:
    checkpoint = make_checkpoint.copy(Variant(dialect="mlx", bits=4), tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    quantization = {name: value and {**value, "group_size": None} for name, value in modules(config)}
    edit_config(checkpoint, {"quantization": {"bits": 4, "group_size": None, "mode": None, **quantization}})
    assert moe_pack("build", checkpoint, tmp_path / "pack").code == 0


def modules(config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, value) for name, value in config["quantization"].items() if isinstance(value, dict)]
