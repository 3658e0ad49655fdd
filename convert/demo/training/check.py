"""Shows that fast.py computes what transformers computes: outputs and gradients in float32 on the CPU."""

from __future__ import annotations

import sys

import torch
from fast import install
from train import SHAPE
from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig


def run(model: Qwen3_5MoeForCausalLM, ids: torch.Tensor) -> list[torch.Tensor]:
    """The logits, and the gradient of every parameter."""
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits
    logits.pow(2).mean().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters())]


def main() -> None:
    torch.manual_seed(0)
    model = Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig(**{**SHAPE, "initializer_range": 0.1}))
    ids = torch.randint(0, 2048, (2, 192))
    ours, theirs = [], run(model, ids)
    install(compiled="--compiled" in sys.argv)
    ours = run(model, ids)
    worst = max(float((a - b).norm() / (b.norm() + 1e-9)) for a, b in zip(ours, theirs, strict=True))
    print(f"largest relative difference: {worst:.2e}")


if __name__ == "__main__":
    main()
