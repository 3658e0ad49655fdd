"""Geometry from config.json: what is read, what is derived, what is refused and how."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TINY, CheckpointMaker, Variant, edit_config, text_config
from packs import build_pack
from safetensors.torch import load_file, save_file

from moepack.convert import families
from moepack.convert.families import find_family
from moepack.convert.families.qwen3_5_moe import QWEN3_5_MOE
from moepack.manifests.errors import CorruptInputError, UnsupportedError
from moepack.manifests.schema import Model

PUBLISHED = {  # the 397B model's text_config, as public configurations give it
    "model_type": "qwen3_5_moe_text",
    "hidden_size": 4096,
    "num_hidden_layers": 60,
    "full_attention_interval": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "vocab_size": 248320,
    "rms_norm_eps": 1e-6,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 64,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 1024,
    "shared_expert_intermediate_size": 1024,
    "max_position_embeddings": 262144,
    "hidden_act": "silu",
    "attention_bias": False,
    "attn_output_gate": True,
    "mlp_only_layers": [],
    "mtp_num_hidden_layers": 1,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000000,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    },
}
NESTED = {
    "model_type": "qwen3_5_moe",
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "tie_word_embeddings": False,
    "text_config": PUBLISHED,
    "vision_config": {"depth": 27},
}


def geometry(config: dict[str, Any]) -> Model:
    return find_family(config).geometry(config)


def changed(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**PUBLISHED, **changes}.items() if value is not None}


def test_the_397b_model_nested_or_flat() -> None:
    model = geometry(NESTED)
    assert model == geometry({**PUBLISHED, "architectures": ["Qwen3_5MoeForCausalLM"]})
    assert (model.num_layers, model.layer_types.count("full_attention")) == (60, 15)
    assert [index for index, kind in enumerate(model.layer_types) if kind == "full_attention"][:2] == [3, 7]
    assert (model.full_attention.rotary_dims, model.full_attention.rope_theta) == (64, 1e7)
    assert not model.tie_word_embeddings


def test_the_397b_trunk_has_the_known_shapes() -> None:
    family = find_family(NESTED)
    shapes = {tensor.name: tensor.shape for tensor in family.trunk(geometry(NESTED))}
    assert shapes["model.layers.0.linear_attn.in_proj_qkv.weight"] == (12288, 4096)
    assert shapes["model.layers.0.linear_attn.out_proj.weight"] == (4096, 8192)
    assert shapes["model.layers.0.linear_attn.conv1d.weight"] == (12288, 4)
    assert shapes["model.layers.3.self_attn.q_proj.weight"] == (16384, 4096)
    assert shapes["model.layers.59.mlp.gate.weight"] == (512, 4096)
    assert shapes["lm_head.weight"] == (248320, 4096)
    weights = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes.values())
    assert round(weights / 1e9, 2) == 9.80


def test_transformers_own_config_agrees() -> None:
    config = text_config(TINY).to_dict()
    model = geometry(config)
    assert model.layer_types == config["layer_types"]
    assert model.full_attention.rotary_dims == 8


def test_old_style_rope_settings_are_read() -> None:
    config = changed(rope_parameters=None, rope_theta=5e6, partial_rotary_factor=0.5)
    attention = geometry(config).full_attention
    assert (attention.rope_theta, attention.rotary_dims) == (5e6, 128)


def test_the_interval_defaults_to_four_and_layer_types_win() -> None:
    assert geometry(changed(full_attention_interval=None)) == geometry(PUBLISHED)
    kinds = ["full_attention"] + ["linear_attention"] * 59
    assert geometry(changed(layer_types=kinds)).layer_types == kinds


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_experts_per_tok": 513}, "num_experts_per_tok = 513"),
        ({"num_attention_heads": 33, "num_key_value_heads": 2}, "num_attention_heads = 33"),
        ({"linear_num_value_heads": 65}, "linear_num_value_heads = 65"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"hidden_size": -1}, "hidden_size = -1"),
        ({"hidden_size": 4096.0}, "hidden_size = 4096.0"),
        ({"hidden_size": True}, "hidden_size = True"),
        ({"num_experts": 2**40}, "num_experts"),
        ({"num_experts": "512"}, "num_experts = '512'"),
        ({"num_experts": 65537}, "num_experts = 65537.* to 65536"),
        ({"num_hidden_layers": 300_000_000}, "num_hidden_layers = 300000000.* to 4096"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"layer_types": ["full_attention"]}, "lists 1 layer_types"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"partial_rotary_factor": 2.0, "rope_parameters": {"rope_theta": 1e7}}, "rotates 512 of 256"),
        ({"rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": 0.003}}, "rotates 0 of 256"),
        ({"rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": 1e308}}, "of 256 head dimensions"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_numbers_that_cannot_be_are_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(CorruptInputError, match=complaint):
        geometry(changed(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"norm_topk_prob": False},
        {"mlp_only_layers": [0]},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e7}},
        {"layer_types": ["sliding_attention"] * 60},
    ],
)
def test_other_mathematics_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(changes)).split("_")[0]):
        geometry(changed(**changes))


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]},
        {"model_type": "qwen3_5_moe", "architectures": ["Qwen3_5MoeForSequenceClassification"]},
        {"model_type": ["qwen3_5_moe"]},
        {},
    ],
)
def test_other_families_are_refused_naming_what_is_supported(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"qwen3_5_moe .*Qwen3_5MoeForCausalLM"):
        find_family(config)


@pytest.mark.parametrize("architectures", [5, "Qwen3_5MoeForCausalLM", [["Qwen3_5MoeForCausalLM"]], {}])
def test_architectures_that_are_no_list_of_names_are_refused(architectures: object) -> None:
    with pytest.raises(CorruptInputError, match="architectures"):
        find_family({**PUBLISHED, "architectures": architectures})


def test_another_family_is_one_more_table(
    make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same model under other names: a table that says so is all that packing it takes."""
    checkpoint = make_checkpoint.copy(Variant(), tmp_path / "checkpoint")
    build_pack(checkpoint, tmp_path / "expected")
    weights = checkpoint / "model.safetensors"
    renamed = {name.replace(".mlp.experts.", ".moe.bank."): tensor for name, tensor in load_file(weights).items()}
    save_file(renamed, weights, metadata={"format": "pt"})
    edit_config(checkpoint, {"model_type": "invented", "architectures": ["InventedForCausalLM"]})
    names = replace(QWEN3_5_MOE.experts, separate="moe.bank.{expert}.{projection}_proj.weight")
    invented = replace(
        QWEN3_5_MOE, name="invented", model_types=("invented",), architectures=("InventedForCausalLM",), experts=names
    )
    monkeypatch.setattr(families, "FAMILIES", (QWEN3_5_MOE, invented))
    build_pack(checkpoint, tmp_path / "pack")
    for name in ("trunk.safetensors", "digests.bin"):
        assert (tmp_path / "pack" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
