"""Qwen3.5-MoE, text: gated full attention, Gated DeltaNet, and a mixture of experts with a shared one in every layer.

Names and shapes as in transformers' `Qwen3_5MoeForCausalLM`; the 35B, 122B and 397B models (and Qwen3.6, which uses
the same classes) differ only in the numbers that config.json gives.
"""

from collections.abc import Mapping
from typing import Any

from ...manifests.errors import UnsupportedError
from ...manifests.schema import FullAttention, LayerType, LinearAttention, Model
from .family import ExpertNames, Family, Presence, Role, Row
from .settings import MAX_COUNT, Settings

FULL_ATTENTION_INTERVAL = 4
PARTIAL_ROTARY_FACTOR = 0.25
MAX_LAYERS = 4096  # as the manifest's schema has it
MAX_EXPERTS = 65536
LAYER_TYPES: tuple[LayerType, ...] = ("linear_attention", "full_attention")

# Settings that change the mathematics. The engine computes only these; transformers' class knows no others.
FIXED: Mapping[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attn_output_gate": True,
    "norm_topk_prob": True,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
}
FIXED_ROPE: Mapping[str, Any] = {"rope_type": "default", "type": "default"}


def _geometry(config: Mapping[str, Any]) -> Model:
    text = Settings(config).nested("text_config")
    text.require(FIXED)
    return Model(
        family=QWEN3_5_MOE.name,
        hidden_size=text.count("hidden_size"),
        vocab_size=text.count("vocab_size"),
        layer_types=_layer_types(text),
        num_experts=text.count("num_experts", most=MAX_EXPERTS),
        num_experts_per_tok=text.at_most("num_experts_per_tok", "num_experts"),
        moe_intermediate_size=text.count("moe_intermediate_size"),
        shared_expert_intermediate_size=text.count("shared_expert_intermediate_size"),
        full_attention=_full_attention(text),
        linear_attention=_linear_attention(text),
        rms_norm_eps=text.positive("rms_norm_eps"),
        max_position_embeddings=text.count("max_position_embeddings"),
        tie_word_embeddings=Settings({**text.values, **config}).flag("tie_word_embeddings", default=False),
    )


def _layer_types(text: Settings) -> list[LayerType]:
    layers = text.count("num_hidden_layers", most=MAX_LAYERS)
    if text.values.get("layer_types") is None:
        interval = text.count("full_attention_interval", default=FULL_ATTENTION_INTERVAL)
        return [LAYER_TYPES[(index + 1) % interval == 0] for index in range(layers)]
    names = text.names("layer_types")
    if unknown := set(names) - set(LAYER_TYPES):
        raise UnsupportedError(f"config.json has layers of type {min(unknown)!r}; known are {', '.join(LAYER_TYPES)}")
    if len(names) != layers:
        raise text.wrong(f"lists {len(names)} layer_types for num_hidden_layers = {layers}")
    return [LAYER_TYPES[LAYER_TYPES.index(name)] for name in names]


def _full_attention(text: Settings) -> FullAttention:
    rope = text.nested("rope_parameters").nested("rope_scaling")
    rope.require(FIXED_ROPE)
    rope = Settings({**text.values, **rope.values})
    head_dim = text.count("head_dim")
    factor = rope.positive("partial_rotary_factor", default=PARTIAL_ROTARY_FACTOR)
    rotary_dims = int(min(head_dim * factor, MAX_COUNT))
    if rotary_dims > head_dim or rotary_dims % 2 or not rotary_dims:
        raise text.wrong(f"rotates {rotary_dims} of {head_dim} head dimensions; an even number up to all is possible")
    return FullAttention(
        num_heads=text.multiple("num_attention_heads", "num_key_value_heads"),
        num_kv_heads=text.count("num_key_value_heads"),
        head_dim=head_dim,
        rotary_dims=rotary_dims,
        rope_theta=rope.positive("rope_theta"),
    )


def _linear_attention(text: Settings) -> LinearAttention:
    return LinearAttention(
        num_key_heads=text.count("linear_num_key_heads"),
        num_value_heads=text.multiple("linear_num_value_heads", "linear_num_key_heads"),
        key_head_dim=text.count("linear_key_head_dim"),
        value_head_dim=text.count("linear_value_head_dim"),
        conv_kernel=text.count("linear_conv_kernel_dim"),
    )


def _value_dim(model: Model) -> int:
    return model.linear_attention.num_value_heads * model.linear_attention.value_head_dim


def _channels(model: Model) -> int:
    return 2 * model.linear_attention.num_key_heads * model.linear_attention.key_head_dim + _value_dim(model)


def _query_dim(model: Model) -> int:
    return model.full_attention.num_heads * model.full_attention.head_dim


def _key_dim(model: Model) -> int:
    return model.full_attention.num_kv_heads * model.full_attention.head_dim


LINEAR_ATTENTION = (
    Row("linear_attn.in_proj_qkv.weight", Role.MATRIX, lambda m: (_channels(m), m.hidden_size)),
    Row("linear_attn.in_proj_z.weight", Role.MATRIX, lambda m: (_value_dim(m), m.hidden_size)),
    Row("linear_attn.in_proj_b.weight", Role.MATRIX, lambda m: (m.linear_attention.num_value_heads, m.hidden_size)),
    Row("linear_attn.in_proj_a.weight", Role.MATRIX, lambda m: (m.linear_attention.num_value_heads, m.hidden_size)),
    Row("linear_attn.conv1d.weight", Role.CONVOLUTION, lambda m: (_channels(m), m.linear_attention.conv_kernel)),
    Row("linear_attn.A_log", Role.VECTOR, lambda m: (m.linear_attention.num_value_heads,)),
    Row("linear_attn.dt_bias", Role.VECTOR, lambda m: (m.linear_attention.num_value_heads,)),
    Row("linear_attn.norm.weight", Role.NORM, lambda m: (m.linear_attention.value_head_dim,)),
    Row("linear_attn.out_proj.weight", Role.SENSITIVE, lambda m: (m.hidden_size, _value_dim(m))),
)
FULL_ATTENTION = (
    # Of every head, head_dim rows of query, then head_dim rows of its output gate.
    Row("self_attn.q_proj.weight", Role.MATRIX, lambda m: (2 * _query_dim(m), m.hidden_size)),
    Row("self_attn.k_proj.weight", Role.MATRIX, lambda m: (_key_dim(m), m.hidden_size)),
    Row("self_attn.v_proj.weight", Role.MATRIX, lambda m: (_key_dim(m), m.hidden_size)),
    Row("self_attn.o_proj.weight", Role.SENSITIVE, lambda m: (m.hidden_size, _query_dim(m))),
    Row("self_attn.q_norm.weight", Role.CENTERED_NORM, lambda m: (m.full_attention.head_dim,)),
    Row("self_attn.k_norm.weight", Role.CENTERED_NORM, lambda m: (m.full_attention.head_dim,)),
)
EVERY_LAYER = (
    Row("input_layernorm.weight", Role.CENTERED_NORM, lambda m: (m.hidden_size,)),
    Row("post_attention_layernorm.weight", Role.CENTERED_NORM, lambda m: (m.hidden_size,)),
    Row("mlp.gate.weight", Role.ROUTER, lambda m: (m.num_experts, m.hidden_size)),
    Row("mlp.shared_expert_gate.weight", Role.ROUTER, lambda m: (1, m.hidden_size)),
    Row(
        "mlp.shared_expert.gate_proj.weight",
        Role.SENSITIVE,
        lambda m: (m.shared_expert_intermediate_size, m.hidden_size),
    ),
    Row(
        "mlp.shared_expert.up_proj.weight", Role.SENSITIVE, lambda m: (m.shared_expert_intermediate_size, m.hidden_size)
    ),
    Row(
        "mlp.shared_expert.down_proj.weight",
        Role.SENSITIVE,
        lambda m: (m.hidden_size, m.shared_expert_intermediate_size),
    ),
)

QWEN3_5_MOE = Family(
    name="qwen3_5_moe",
    model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
    architectures=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
    before_layers=(
        Row("model.embed_tokens.weight", Role.MATRIX, lambda m: (m.vocab_size, m.hidden_size), Presence.UNTIED),
        Row("model.embed_tokens.weight", Role.SENSITIVE, lambda m: (m.vocab_size, m.hidden_size), Presence.TIED),
    ),
    every_layer=EVERY_LAYER,
    by_layer_type={"linear_attention": LINEAR_ATTENTION, "full_attention": FULL_ATTENTION},
    after_layers=(
        Row("model.norm.weight", Role.CENTERED_NORM, lambda m: (m.hidden_size,)),
        Row("lm_head.weight", Role.SENSITIVE, lambda m: (m.vocab_size, m.hidden_size), Presence.UNTIED),
    ),
    experts=ExpertNames(
        gate_up="mlp.experts.gate_up_proj",
        down="mlp.experts.down_proj",
        separate="mlp.experts.{expert}.{projection}_proj.weight",
        stacked="mlp.switch_mlp.{projection}_proj",
    ),
    left_out={
        "mtp.": "multi-token prediction",
        "language_model.mtp.": "multi-token prediction",
        "model.visual.": "the vision tower",
        "visual.": "the vision tower",
        "vision_tower.": "the vision tower",
    },
    geometry=_geometry,
)
