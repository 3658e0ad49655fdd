"""FP8 and GPTQ renderings of a transformers checkpoint, written by other code than ours.

FP8 by transformers' own `Fp8Quantize`. GPTQ by a packer made from the format's definition, one code at a time:
AutoGPTQ's `QuantLinear.pack` for codes and zeros, GPTQModel's v2-to-v1 conversion (whole words less 0x11111111).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import Shape, edit_config
from safetensors.torch import load_file, save_file

from moepack.convert.checkpoint import Checkpoint
from moepack.convert.reference import Reference
from moepack.runtime.backends.cpu import CpuBackend
from moepack.runtime.corpus import Corpus
from moepack.runtime.sweep import Sweep

Tensors = dict[str, torch.Tensor]
SINGLE = "model.safetensors"
BLOCKY = Shape(hidden=256, intermediate=128, shared_intermediate=128, layers=2, interval=2, experts=4, vocab=300)
KEPT = ("embed_tokens", "lm_head", "mlp.gate.", "shared_expert_gate", "conv1d", "norm", "in_proj_a", "in_proj_b")


def is_converted(name: str) -> bool:
    """Whether a published checkpoint would quantize the tensor `name`."""
    return name.endswith(("_proj.weight", "_proj", "_qkv.weight", "_z.weight")) and not any(k in name for k in KEPT)


def rewrite(checkpoint: Path, convert: Callable[[str, torch.Tensor], Tensors], quantization: Mapping[str, Any]) -> Path:
    """Replace each matrix of a single-file checkpoint by what `convert` makes of it."""
    tensors: Tensors = {}
    for name, tensor in load_file(checkpoint / SINGLE).items():
        tensors.update(convert(name, tensor) if is_converted(name) else {name: tensor})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, checkpoint / SINGLE)
    edit_config(checkpoint, {"quantization_config": dict(quantization)})
    return checkpoint


def make_fp8(checkpoint: Path, scale_dtype: torch.dtype = torch.float32, *, block: int = 128) -> Path:
    """Rewrite a checkpoint as transformers' fine-grained FP8 saves it; matrices of other sizes stay as they are."""
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Quantize
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

    config = FineGrainedFP8Config(weight_block_size=[block, block], modules_to_not_convert=["lm_head"])
    quantize = Fp8Quantize(FineGrainedFP8HfQuantizer(config))

    def convert(name: str, tensor: torch.Tensor) -> Tensors:
        made = quantize.convert({name: tensor})
        return {key: value.to(scale_dtype) if key.endswith("_inv") else value for key, value in made.items()}

    return rewrite(checkpoint, convert, config.to_dict())


@dataclass(frozen=True)
class GptqStyle:
    """One way of storing GPTQ codes; `stored_less` is what a writer takes off every zero."""

    bits: int = 4
    group_size: int = 64
    sym: bool = True
    desc_act: bool = False
    checkpoint_format: str | None = "gptq"
    stored_less: int = 1
    dtype: torch.dtype = torch.float16

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says of it."""
        config = {"quant_method": "gptq", "bits": self.bits, "group_size": self.group_size, "sym": self.sym}
        return config | {"desc_act": self.desc_act, "checkpoint_format": self.checkpoint_format}


def pack_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [n, m] -> int32 words [ceil(n * bits / 32), m], packed down the first axis, low bits first."""
    words = np.zeros((-(-len(codes) * bits // 32), codes.shape[1]), np.uint32)
    for index, row in enumerate(codes.astype(np.uint32)):
        words[index * bits // 32] |= row << np.uint32(index * bits % 32)
    return words.view(np.int32)


def gptq_matrix(weight: np.ndarray, style: GptqStyle, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tensors of one module, and its weights in float64: weight[o, i] = scale[g_idx[i], o] * (code - zero)."""
    rows, cols = weight.shape
    groups, top = -(-cols // style.group_size), 2**style.bits - 1
    order = np.arange(cols, dtype=np.int32) // style.group_size
    if style.desc_act:
        order = np.random.default_rng(seed).permutation(order)
    scale, zero = np.empty((groups, rows)), np.empty((groups, rows), np.int64)
    for group in range(groups):
        part = weight[:, order == group]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        scale[group] = 2 * np.abs(part).max(1) / top if style.sym else (high - low) / top
        scale[group] = torch.from_numpy(scale[group]).to(style.dtype).double().numpy()
        zero[group] = (top + 1) // 2 if style.sym else np.clip(np.rint(-low / scale[group]), 0, top)
    codes = np.clip(np.rint(weight.T / scale[order] + zero[order]), 0, top)
    less = np.uint32((2**32 - 1) // top * style.stored_less)
    zeros = (np.ascontiguousarray(pack_words(zero.T, style.bits).T).view(np.uint32) - less).view(np.int32)
    tensors = {"qweight": pack_words(codes, style.bits), "qzeros": zeros, "scales": scale, "g_idx": order}
    return tensors, (scale[order] * (codes - zero[order])).T


def make_gptq(checkpoint: Path, style: GptqStyle) -> dict[str, np.ndarray]:
    """Rewrite a checkpoint with separate experts as GPTQ; the true weights of what was quantized are returned."""
    truth: dict[str, np.ndarray] = {}

    def convert(name: str, tensor: torch.Tensor) -> Tensors:
        weight = tensor.double().numpy()
        weight[:2] = np.abs(weight[:2])  # asymmetric codes of these rows have the zero 0
        tensors, truth[name] = gptq_matrix(weight, style, len(truth))
        stem = name.removesuffix("weight")
        made = {stem + part: torch.from_numpy(array) for part, array in tensors.items()}
        return {**made, f"{stem}scales": made[f"{stem}scales"].to(style.dtype)}

    rewrite(checkpoint, convert, style.config)
    return truth


def make_floats(checkpoint: Path, truth: Mapping[str, np.ndarray]) -> Path:
    """Put exact float32 weights into a checkpoint in place of its own."""
    tensors = load_file(checkpoint / SINGLE)
    for name, values in truth.items():
        exact = torch.from_numpy(values).float()
        assert (exact.double().numpy() == values).all()
        tensors[name] = exact.contiguous()
    save_file(tensors, checkpoint / SINGLE)
    return checkpoint


def largest_difference(checkpoint: Path, model: Any) -> float:
    """Between the logits of a checkpoint, read as it is by us, and those of a transformers model, over 40 tokens."""
    tokens = [token * 7 % BLOCKY.vocab for token in range(40)]
    with Checkpoint.open(str(checkpoint)) as opened:
        sweep = Sweep(Reference(opened), CpuBackend(2, exact=True))
        found = sweep.logits(sweep.run(sweep.embed(Corpus.of([tokens]))), slice(None))
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0].numpy()
    difference = float(np.abs(found - wanted).max())
    print(f"largest difference {difference:.2e}, standard deviation {wanted.std():.2f}")
    return difference
