"""Measures the trained model: perplexity on held-out data, and tool calls on prompts whose values it has never seen.

Variants: the bf16 model, the shipped 4-bit checkpoint, and that checkpoint with its routed experts at 2 bits, by the
range of each group of 64 (minmax) and by least squares over each group (lsq). Writes figures.json.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from chat import Conversations
from render import render
from safetensors.torch import load_file
from tokenizers import Tokenizer
from train import ASSISTANT, Chats, Windows
from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

HERE = Path(__file__).resolve().parent
GROUP = 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ONE_CENTRED = re.compile(r"(layernorm|[qk]_norm|model\.norm)\.weight$")  # stored with 1 added by mlx_lm


def nearest(groups: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Codes 0 to 3 for every group, given its scale and bias."""
    return ((groups - bias) / torch.where(scale == 0, 1, scale)).round().clamp(0, 3)


def refit(groups: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and bias that fit a group best in least squares, given its codes."""
    codes = nearest(groups, scale, bias)
    codes_off, groups_off = (x - x.mean(1, keepdim=True) for x in (codes, groups))
    spread = (codes_off**2).sum(1, keepdim=True)
    slope = torch.where(spread > 0, (codes_off * groups_off).sum(1, keepdim=True) / spread, scale)
    return slope, groups.mean(1, keepdim=True) - slope * codes.mean(1, keepdim=True)


def two_bits(weight: torch.Tensor, fitted: bool) -> torch.Tensor:
    """A weight as 2-bit codes with a bfloat16 scale and bias per group of 64 would hold it."""
    groups = weight.reshape(-1, GROUP).double()
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    best, error = torch.zeros_like(groups), torch.full_like(low, float("inf"))
    for shrink in (1.0, 0.85, 0.7, 0.55) if fitted else (1.0,):
        scale, bias = (high - low) * shrink / 3, (low + high) / 2 - (high - low) * shrink / 2
        for _ in range(12 if fitted else 0):
            scale, bias = refit(groups, scale, bias)
        scale, bias = scale.bfloat16().double(), bias.bfloat16().double()
        held = nearest(groups, scale, bias) * scale + bias
        wrong = ((held - groups) ** 2).sum(1, keepdim=True)
        best, error = torch.where(wrong < error, held, best), torch.minimum(wrong, error)
    return best.reshape(weight.shape).float()


def unpacked(weight: torch.Tensor, scales: torch.Tensor, biases: torch.Tensor, bits: int) -> torch.Tensor:
    """MLX's affine codes, lowest bits first in each 32-bit word, as float32."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes = (weight.view(torch.int32).unsqueeze(-1) >> shifts) & (2**bits - 1)
    groups = codes.reshape(*scales.shape, GROUP).float()
    return (groups * scales.float().unsqueeze(-1) + biases.float().unsqueeze(-1)).flatten(-2)


def dequantized(path: Path) -> dict[str, torch.Tensor]:
    """The 4-bit checkpoint in float32 under transformers' names."""
    stored = load_file(path / "model.safetensors")
    special = json.loads((path / "config.json").read_text())["quantization"]
    state: dict[str, torch.Tensor] = {}
    for name, value in stored.items():
        stem, _, kind = name.rpartition(".")
        if kind in ("scales", "biases"):
            continue
        if f"{stem}.scales" in stored:
            bits = special.get(stem, special)["bits"]
            value = unpacked(value, stored[f"{stem}.scales"], stored[f"{stem}.biases"], bits)
        if "conv1d" in name:
            value = value.transpose(1, 2)
        value = value.float() - (1 if ONE_CENTRED.search(name) else 0)
        state[name.removeprefix("language_model.")] = value.contiguous()
    for stem in [n.removesuffix("gate_proj.weight") for n in state if n.endswith("switch_mlp.gate_proj.weight")]:
        gate, up, down = (state.pop(f"{stem}{part}_proj.weight") for part in ("gate", "up", "down"))
        experts = stem.replace("switch_mlp", "experts")
        state |= {f"{experts}gate_up_proj": torch.cat([gate, up], 1), f"{experts}down_proj": down}
    return state


def with_experts_at_two_bits(state: dict[str, torch.Tensor], fitted: bool) -> dict[str, torch.Tensor]:
    return {n: two_bits(v, fitted) if ".experts." in n else v for n, v in state.items()}


def calls_in(text: str) -> list[dict[str, Any]] | None:
    """The tool calls of an answer; None if one of them is no valid JSON call or there is none."""
    try:
        calls = [json.loads(body) for body in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text, re.DOTALL)]
    except json.JSONDecodeError:
        return None
    whole = text.count("<tool_call>") == len(calls) > 0
    return calls if whole and all(isinstance(c, dict) and {"name", "arguments"} == set(c) for c in calls) else None


@torch.no_grad()
def answers(model: Any, tokenizer: Tokenizer, prompts: list[str]) -> list[str]:
    """Greedy answers."""
    batch = 200 if DEVICE == "cuda" else 50
    found: list[str] = []
    for start in range(0, len(prompts), batch):
        ids = [tokenizer.encode(prompt).ids for prompt in prompts[start : start + batch]]
        width = max(map(len, ids))
        padded = torch.tensor([[0] * (width - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
        greedy = {"max_new_tokens": 160, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
        out = model.generate(padded.to(DEVICE), attention_mask=mask.to(DEVICE), **greedy)[:, width:].tolist()
        ended = [row[: row.index(2)] if 2 in row else row for row in out]
        found += [tokenizer.decode(row, skip_special_tokens=False) for row in ended]
    return found


def held_out_prompts(tables: dict[str, Any], calls: int, others: int) -> tuple[list[Any], list[str]]:
    """(prompt, expected calls) pairs, and prompts that no tool answers; all single-turn or later turns as they come."""
    stream = Conversations(4242, tables["words"], tables["questions"], evaluation=True)
    with_call: list[Any] = []
    without: list[str] = []
    while len(with_call) < calls or len(without) < others:
        messages, tools = stream.draw()
        turns = [i for i, m in enumerate(messages) if m["role"] == "user"] if tools else []
        if not turns:
            continue
        at = stream.rng.choice(turns)
        prompt = render(messages[: at + 1], tools, prompt=True)
        if made := messages[at + 1].get("tool_calls"):
            with_call.append((prompt, [call["function"] for call in made]))
        else:
            without.append(prompt)
    return with_call[:calls], without[:others]


def tool_figures(model: Any, tokenizer: Tokenizer, tables: dict[str, Any], count: int, show: int) -> dict[str, Any]:
    wanted, others = held_out_prompts(tables, count, count // 5)
    texts = answers(model, tokenizer, [prompt for prompt, _ in wanted])
    got = [calls_in(text) for text in texts]
    pairs = list(zip(got, (expected for _, expected in wanted), strict=True))
    names = [calls is not None and [c["name"] for c in calls] == [c["name"] for c in right] for calls, right in pairs]
    right = [calls == expected for calls, expected in pairs]
    for (_, expected), text, ok in list(zip(wanted, texts, right, strict=True)):
        if not ok and (show := show - 1) >= 0:
            print(f"  wanted {json.dumps(expected)}\n  got    {text!r}")
    free = [calls_in(text) is None and "<tool_call>" not in text for text in answers(model, tokenizer, others)]
    share = {"valid_json": np.mean([c is not None for c in got]), "right_tool": np.mean(names)}
    share |= {"right_arguments": np.mean(right), "no_call_where_none_fits": np.mean(free)}
    return {"prompts": len(wanted), **{key: round(float(value), 4) for key, value in share.items()}}


@torch.no_grad()
def perplexities(model: Any, data: Path, rows: int, length: int = 1024) -> dict[str, float]:
    """Per-token perplexity on held-out text, source and conversations."""
    chats = iter(Chats(data, length + 1, 999, evaluation=True))
    sets = {name: Windows(data / f"val_{name}.bin", length + 1, 7).rows(rows).long() for name in ("text", "code")}
    sets["chat"] = torch.from_numpy(np.stack([next(chats) for _ in range(rows)])).long()
    found = {}
    for name, tokens in sets.items():
        parts = []
        for part in tokens.to(DEVICE).split(8):
            logits = model(input_ids=part[:, :-1] & 0x3FFF, use_cache=False).logits
            parts.append(F.cross_entropy(logits.flatten(0, 1), (part[:, 1:] & 0x3FFF).flatten(), reduction="none"))
        loss = torch.cat(parts).cpu()
        found[name] = round(loss.mean().exp().item(), 4)
        if name == "chat":
            mine = (tokens[:, 1:] & ASSISTANT).flatten() != 0
            found["chat_assistant"] = round(loss[mine].mean().exp().item(), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bf16", type=Path, required=True, help="what export.py put there")
    parser.add_argument("--data", type=Path, required=True, help="what corpus.py wrote")
    parser.add_argument("--training", type=Path, nargs="+", required=True, help="training.json of each stage")
    parser.add_argument("--checkpoint", type=Path, default=HERE.parent / "checkpoint")
    parser.add_argument("--out", type=Path, default=HERE / "figures.json")
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print")
    parser.add_argument("--only", nargs="*", help="variants to measure")
    args = parser.parse_args()
    tables = json.loads((args.data / "chat.json").read_text())
    tokenizer = Tokenizer.from_file(str(args.checkpoint / "tokenizer.json"))
    config = Qwen3_5MoeTextConfig(**json.loads((args.bf16 / "config.json").read_text())["text_config"])
    original = load_file(args.bf16 / "model.safetensors")
    original = {n.replace("model.language_model.", "model."): v.float() for n, v in original.items()}
    four = dequantized(args.checkpoint)
    variants = {
        "bf16": lambda: original,
        "mlx_4bit": lambda: four,
        "mlx_4bit_experts_2bit_minmax": lambda: with_experts_at_two_bits(four, fitted=False),
        "mlx_4bit_experts_2bit_lsq": lambda: with_experts_at_two_bits(four, fitted=True),
    }
    question = json.loads((HERE.parent / "question.json").read_text())
    figures: dict[str, Any] = {"training": [json.loads(p.read_text()) for p in args.training], "variants": {}}
    model = Qwen3_5MoeForCausalLM(config).float().eval().to(DEVICE)
    figures["parameters"] = sum(p.numel() for p in model.parameters())
    figures["checkpoint_bytes"] = sum(p.stat().st_size for p in args.checkpoint.iterdir())
    for name, state in variants.items():
        if args.only and name not in args.only:
            continue
        began = time.time()
        model.load_state_dict(state())
        found: dict[str, Any] = {"perplexity": perplexities(model, args.data, args.rows)}
        found["tool_calls"] = tool_figures(model, tokenizer, tables, args.prompts, args.show)
        found["demonstration"] = answers(model, tokenizer, [render(**question, prompt=True)])[0]
        figures["variants"][name] = found
        print(name, json.dumps(found), f"{time.time() - began:.0f} s", flush=True)
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
