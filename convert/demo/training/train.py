"""Trains the demonstration model on one GPU: ordinary bf16 training of Qwen3_5MoeForCausalLM, no quantisation in it.

A share of every batch is fresh conversations made while training, the rest half help text, half Python source.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from chat import Conversations
from fast import install
from render import render
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

ASSISTANT, OTHER = 0x8000, 0x4000  # marks on chat tokens: written by the assistant, or not
WEIGHTS = {ASSISTANT: 2.0, OTHER: 0.1}  # of their losses; text and code weigh 1
SHAPE: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 256,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    "eos_token_id": 2,
    "pad_token_id": 0,
}


class Chats(IterableDataset[np.ndarray]):
    """Rows of marked conversation tokens; each worker has a stream of its own."""

    def __init__(self, data: Path, length: int, seed: int, evaluation: bool = False) -> None:
        self.data, self.length, self.seed, self.evaluation = data, length, seed, evaluation

    def __iter__(self) -> Iterator[np.ndarray]:
        tokenizer = Tokenizer.from_file(str(self.data / "tokenizer.json"))
        tables = json.loads((self.data / "chat.json").read_text())
        info = get_worker_info()
        seed = self.seed * 1000 + (info.id if info else 0)
        stream = Conversations(seed, tables["words"], tables["questions"], self.evaluation)
        header = tokenizer.encode("<|im_start|>assistant\n").ids
        while True:
            row: list[int] = []
            while len(row) < self.length:
                row += marked(tokenizer.encode(render(*stream.draw())).ids, header)
            yield np.array(row[: self.length], dtype=np.int32)


def marked(ids: list[int], header: list[int]) -> list[int]:
    """Conversation tokens with their marks, and <|endoftext|> after them."""
    result, mine = [], False
    for i, token in enumerate(ids):
        result.append(token | (ASSISTANT if mine else OTHER))
        if token == 2:
            mine = False
        elif i + 1 >= len(header) and ids[i + 1 - len(header) : i + 1] == header:
            mine = True
    return [*result, OTHER]


class Windows:
    """Random windows of a token file."""

    def __init__(self, path: Path, length: int, seed: int) -> None:
        self.tokens = np.fromfile(path, dtype=np.uint16)
        self.length, self.rng = length, np.random.default_rng(seed)

    def rows(self, count: int) -> torch.Tensor:
        starts = self.rng.integers(0, len(self.tokens) - self.length, count)
        return torch.from_numpy(np.stack([self.tokens[s : s + self.length] for s in starts]).astype(np.int32))


def losses(model: Any, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token losses and weights of marked rows."""
    ids, targets = rows[:, :-1] & 0x3FFF, rows[:, 1:]
    logits = model(input_ids=ids, use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1).float(), (targets & 0x3FFF).flatten(), reduction="none")
    weight = torch.ones_like(loss)
    for mark, value in WEIGHTS.items():
        weight[(targets.flatten() & mark) != 0] = value
    return loss, weight


def validate(model: Any, sets: dict[str, torch.Tensor]) -> dict[str, float]:
    """Mean loss on held-out rows; for chats also on the assistant's tokens alone."""
    found: dict[str, float] = {}
    for name, rows in sets.items():
        loss, weight = (side.detach() for side in losses(model, rows))
        found[name] = loss.mean().item()
        if name == "chat":
            found["assistant"] = loss[weight == WEIGHTS[ASSISTANT]].mean().item()
    return found


def rate(progress: float, step: int, peak: float) -> float:
    """Warm-up, a plateau, and a straight way down over the last 60 percent."""
    return peak * min(1.0, (step + 1) / 200, (1 - progress) / 0.6)


def optimizer_for(model: Any, peak: float) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=torch.cuda.is_available())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="a saved model to go on from")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=1e9, help="end the schedule by then")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--chat", type=float, default=0.5, help="share of conversations in a batch")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eager", action="store_true")
    args = parser.parse_args()
    began = time.time()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    install(compiled=not args.eager)
    if args.start:
        model: Any = Qwen3_5MoeForCausalLM.from_pretrained(args.start, dtype=torch.float32)
    else:
        model = Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig(**SHAPE))
    model.to(device)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)

    span, talk = args.length + 1, round(args.batch * args.chat)
    quarter = (args.batch - talk) // 2
    chats = iter(DataLoader(Chats(args.data, span, args.seed), batch_size=talk, num_workers=args.workers))
    text = Windows(args.data / "text.bin", span, args.seed)
    code = Windows(args.data / "code.bin", span, args.seed + 1)
    held = {"text": Windows(args.data / "val_text.bin", span, 7).rows(args.batch)}
    held["code"] = Windows(args.data / "val_code.bin", span, 7).rows(args.batch)
    fresh = iter(Chats(args.data, span, 999, evaluation=True))
    held["chat"] = torch.from_numpy(np.stack([next(fresh) for _ in range(args.batch)]))
    held = {name: rows.long().to(device) for name, rows in held.items()}

    optimizer = optimizer_for(model, args.rate)
    autocast = torch.autocast(device, dtype=torch.bfloat16)
    step, progress, log = 0, 0.0, []
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate(progress, step, args.rate)
        rows = torch.cat([next(chats), text.rows(quarter), code.rows(quarter)]).to(device, non_blocking=True).long()
        with autocast:
            loss, weight = losses(model, rows)
            balance = torch.stack([layer.mlp.balance for layer in model.model.layers]).mean()
            mean = (loss * weight).sum() / weight.sum()
        (mean + 0.01 * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        progress = max(step / args.steps, (time.time() - began) / 60 / args.minutes)
        if step % 500 == 0 or step in (1, 20, 60) or progress >= 1:
            with autocast:
                found = validate(model, held)
            found |= {"step": step, "seconds": time.time() - began, "loss": mean.item(), "balance": balance.item()}
            log.append({key: round(value, 4) for key, value in found.items()})
            print(json.dumps(log[-1]), flush=True)

    model.to(torch.bfloat16).save_pretrained(args.out, max_shard_size="14MB")
    facts = {"steps": step, "tokens": step * args.batch * args.length, "seconds": round(time.time() - began)}
    (args.out / "training.json").write_text(
        json.dumps({**facts, "batch": args.batch, "length": args.length, "log": log})
    )


if __name__ == "__main__":
    main()
