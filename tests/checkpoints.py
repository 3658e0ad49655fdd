"""Makers of small checkpoints, written by transformers and mlx_lm themselves, for the tests of every room.

`Shape` says how big; `save_huggingface` and `save_mlx` write a checkpoint and return its directory. Weights are seeded
and scaled so that activations stay sane; norms, A_log and dt_bias are no constants. The `make_checkpoint` fixture
(tests/conftest.py) makes each one once per session.
"""

import contextlib
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

CHAT_TEMPLATE = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{%- endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Shape:
    """A small Qwen3.5-MoE text model's geometry; the default has both layer types and takes a second to make."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    key_heads: int = 2
    value_heads: int = 4
    key_head_dim: int = 32
    value_head_dim: int = 32
    experts: int = 8
    experts_per_token: int = 3
    intermediate: int = 64
    shared_intermediate: int = 64
    vocab: int = 512
    tied: bool = False
    interval: int = 4
    seed: int = 0
    theta: float = 10000.0

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments of transformers' text config."""
        return {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "linear_num_key_heads": self.key_heads,
            "linear_num_value_heads": self.value_heads,
            "linear_key_head_dim": self.key_head_dim,
            "linear_value_head_dim": self.value_head_dim,
            "num_experts": self.experts,
            "num_experts_per_tok": self.experts_per_token,
            "moe_intermediate_size": self.intermediate,
            "shared_expert_intermediate_size": self.shared_intermediate,
            "vocab_size": self.vocab,
            "tie_word_embeddings": self.tied,
            "full_attention_interval": self.interval,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.theta, "partial_rotary_factor": 0.25},
        }


TINY = Shape()
ODD = Shape(hidden=384, experts=5, kv_heads=1, heads=3, key_heads=1, value_heads=3, intermediate=192, vocab=300, seed=1)
NARROW = Shape(hidden=96, experts=5, kv_heads=1, intermediate=96, shared_intermediate=96, vocab=300, seed=2)


@dataclass(frozen=True)
class Variant:
    """Which checkpoint to write: of what shape, in which dialect, dtype and arrangement."""

    shape: Shape = TINY
    dialect: str = "huggingface"
    dtype: str = "bfloat16"
    fused: bool = False
    vision: bool = False  # Qwen3_5MoeForConditionalGeneration with a vision tower and MTP tensors
    shard: str | None = None  # the largest shard, as transformers writes sizes ("100KB"); None for a single file
    bits: int | None = None  # MLX only: None for an unquantized mlx_lm.convert
    group_size: int = 64
    mixed: str | None = None  # MLX only: one of mlx_lm's mixed recipes


def text_config(shape: Shape) -> Any:
    """transformers' config of `shape`."""
    from transformers import Qwen3_5MoeTextConfig

    return Qwen3_5MoeTextConfig(**shape.settings)


def random_model(shape: Shape, dtype: str = "float32", *, vision: bool = False) -> Any:
    """A transformers model of `shape` with seeded weights, in `dtype`, ready to run."""
    from transformers import Qwen3_5MoeForCausalLM

    torch.manual_seed(shape.seed)
    model = _multimodal_model(shape) if vision else Qwen3_5MoeForCausalLM(text_config(shape))
    generator = torch.Generator().manual_seed(shape.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_values(name, parameter.shape, generator, tied=shape.tied))
    return model.to(TORCH_DTYPES[dtype]).eval()


def _values(name: str, shape: torch.Size, generator: torch.Generator, *, tied: bool) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith("A_log"):
        return torch.rand(shape, generator=generator).mul(4).add(0.05).log()
    if "linear_attn.norm" in name:
        return 1 + 0.1 * noise
    if noise.ndim == 1:
        return 0.1 * noise  # zero-centred norms, dt_bias
    if "conv1d" in name:
        return 0.5 * noise
    if "embed_tokens" in name and not tied:  # a tied one is the head too, and at this scale predicts its own token
        return noise
    return noise / noise.shape[-1] ** 0.5


def _multimodal_model(shape: Shape) -> Any:
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": shape.hidden}
    vision |= {"patch_size": 4, "num_position_embeddings": 16}
    config = Qwen3_5MoeConfig(
        text_config=shape.settings, vision_config=vision, tie_word_embeddings=shape.tied, image_token_id=1
    )
    return Qwen3_5MoeForConditionalGeneration(config)


def save_huggingface(directory: Path, variant: Variant) -> Path:
    """Write `variant` as transformers does, with a tokenizer and chat template beside it."""
    model = random_model(variant.shape, variant.dtype, vision=variant.vision)
    sharding = {"max_shard_size": variant.shard} if variant.shard else {}
    model.save_pretrained(directory, save_original_format=not variant.fused, **sharding)
    if variant.vision and not variant.shard:
        _add_multi_token_prediction(directory, variant)
    save_tokenizer(directory)
    return directory


def _add_multi_token_prediction(directory: Path, variant: Variant) -> None:
    path, hidden, dtype = directory / "model.safetensors", variant.shape.hidden, TORCH_DTYPES[variant.dtype]
    tensors = load_file(path)
    tensors["mtp.fc.weight"] = torch.ones(hidden, 2 * hidden, dtype=dtype)
    tensors["mtp.norm.weight"] = torch.zeros(hidden, dtype=dtype)
    save_file(tensors, path, metadata={"format": "pt"})


def save_mlx(directory: Path, source: Path, variant: Variant) -> Path:
    """Convert `source`, fused and with vision as published ones are, with mlx_lm.convert (which knows no other)."""
    from mlx_lm import convert

    options: dict[str, Any] = {}
    if variant.bits is not None:
        options = {"quantize": True, "q_bits": variant.bits, "q_group_size": variant.group_size}
        options |= {"quant_predicate": variant.mixed} if variant.mixed else {}
    with contextlib.redirect_stdout(io.StringIO()):
        convert(str(source), str(directory), dtype=variant.dtype, **options)
    return directory


def save_tokenizer(directory: Path) -> None:
    """A tiny byte-level BPE tokenizer with a chat template, as the files that a published checkpoint has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog, again and again"], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)


@dataclass
class CheckpointMaker:
    """Makes each variant once, under `root`; callers must not write into what they get (see `copy`)."""

    root: Path
    made: dict[Variant, Path] = field(default_factory=dict)

    def __call__(self, variant: Variant = Variant()) -> Path:
        """The directory of `variant`."""
        if variant not in self.made:
            self.made[variant] = self._make(variant)
        return self.made[variant]

    def copy(self, variant: Variant, target: Path) -> Path:
        """A copy of `variant` at `target`, for tests that damage it."""
        return Path(shutil.copytree(self(variant), target))

    def _make(self, variant: Variant) -> Path:
        if variant.dialect == "huggingface":
            return save_huggingface(self._next(), variant)
        source = self(Variant(shape=variant.shape, dtype=variant.dtype, fused=True, vision=True))
        return save_mlx(self._next(), source, variant)

    def _next(self) -> Path:
        return self.root / f"checkpoint-{len(self.made)}"


def edit_config(directory: Path, changes: Mapping[str, Any]) -> None:
    """Set keys of a checkpoint's config.json; a value of None removes the key."""
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
