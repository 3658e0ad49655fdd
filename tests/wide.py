"""The geometry of Qwen3.5-397B-A17B, for what is computed about it without its weights."""

from moepack.manifests import schema

WIDE = schema.Model(
    family="qwen3_5_moe",
    hidden_size=4096,
    vocab_size=248_320,
    layer_types=(["linear_attention"] * 3 + ["full_attention"]) * 15,
    num_experts=512,
    num_experts_per_tok=10,
    moe_intermediate_size=1024,
    shared_expert_intermediate_size=1024,
    full_attention=schema.FullAttention(32, 2, 256, 64, 1e7),
    linear_attention=schema.LinearAttention(16, 64, 128, 128, 4),
    rms_norm_eps=1e-6,
    max_position_embeddings=262_144,
    tie_word_embeddings=False,
)
