"""The same functions as transformers' Qwen3.5-MoE blocks, arranged for training speed on one GPU.

`install` replaces the forward passes of the sparse block and of the gated delta net; check.py shows outputs and
gradients equal to the originals up to rounding. Nothing here is needed to run the trained model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as qwen

CHUNK = 64


def dense_moe(block: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Every expert for every token, weighted by zero where the router did not choose it."""
    x = hidden.flatten(0, 1)
    logits, weights, chosen = block.gate(x)
    count, _, width = block.experts.down_proj.shape
    spread = torch.zeros_like(logits).scatter(1, chosen, weights.to(logits.dtype))
    gate, up = F.linear(x, block.experts.gate_up_proj.flatten(0, 1)).view(-1, count, 2, width).unbind(2)
    inner = F.silu(gate) * up * spread.unsqueeze(-1)
    routed = F.linear(inner.flatten(1), block.experts.down_proj.permute(1, 0, 2).flatten(1))
    shared = torch.sigmoid(block.shared_expert_gate(x)) * block.shared_expert(x)
    share = (spread > 0).float().mean(0)
    block.balance = count * (share * logits.float().softmax(-1).mean(0)).sum()
    return (routed + shared).view_as(hidden)


class UnitLowerInverse(torch.autograd.Function):
    """The inverse of 1 + A for strictly lower triangular A."""

    @staticmethod
    def forward(ctx: Any, system: torch.Tensor) -> torch.Tensor:
        eye = torch.eye(CHUNK, device=system.device).expand_as(system)
        inverse = torch.linalg.solve_triangular(system, eye, upper=False, unitriangular=True)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        turned = ctx.saved_tensors[0].mT
        return -(turned @ grad @ turned).tril(-1)


def chunks(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[batch, time, heads * size] as [chunk, batch * heads, CHUNK, size]."""
    batch, time, _ = x.shape
    parts = x.view(batch, time // CHUNK, CHUNK, heads, -1).permute(1, 0, 3, 2, 4)
    return parts.reshape(time // CHUNK, batch * heads, CHUNK, -1)


def prepare(
    mixed: torch.Tensor, b: torch.Tensor, a: torch.Tensor, conv: torch.Tensor, a_log: torch.Tensor, bias: torch.Tensor,
    key_heads: int, key_size: int,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Everything of the chunked delta rule that does not depend on other chunks."""
    batch, time, _ = mixed.shape
    heads, taps = b.shape[-1], conv.shape[-1]
    padded = F.pad(mixed, (0, 0, taps - 1, 0))
    mixed = F.silu(sum(padded[:, j : j + time] * conv[:, 0, j].to(mixed.dtype) for j in range(taps)))
    query, key, value = mixed.split(
        [key_heads * key_size, key_heads * key_size, mixed.shape[-1] - 2 * key_heads * key_size], -1
    )
    query, key = (qwen.l2norm(x.float().view(batch, time, key_heads, key_size)) for x in (query, key))
    query, key = (x.repeat_interleave(heads // key_heads, dim=2).flatten(2) for x in (query, key))
    query, key, value = chunks(query, heads) * key_size**-0.5, chunks(key, heads), chunks(value.float(), heads)
    beta = chunks(b.float().sigmoid(), heads)
    total = chunks(-a_log.exp() * F.softplus(a.float() + bias), heads).cumsum(2)  # [chunk, heads, CHUNK, 1]
    below = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=mixed.device).tril()
    pair = (total - total.mT).masked_fill(~below, float("-inf")).exp()
    system = ((key * beta) @ key.mT).float() * pair * below.tril(-1)
    within = (query @ key.mT) * pair
    right = torch.cat([value * beta, key * beta * total.exp()], -1)
    last = total[:, :, -1:]
    rest = (within, right, query * total.exp(), (key * (last - total).exp()).mT)
    return system, *(x.to(mixed.dtype) for x in rest), last.exp()


def scan(
    within: torch.Tensor, solved: torch.Tensor, query: torch.Tensor, key: torch.Tensor, decay: torch.Tensor, size: int
) -> torch.Tensor:
    """The recurrence over chunks, from an empty state."""
    state = torch.zeros(query.shape[1], query.shape[3], size, device=query.device)
    outs = []
    values, reads = solved.split([size, query.shape[3]], -1)
    for attn, new, read, q, k, gone in zip(
        *(x.unbind(0) for x in (within, values, reads, query, key, decay)), strict=True
    ):
        new = new - read @ state
        outs.append((q @ state + attn @ new).to(new.dtype))
        state = state * gone + k @ new
    return torch.stack(outs)


def delta_net(net: Any, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
    """Qwen3_5MoeGatedDeltaNet.forward without cache or mask, for lengths that are a multiple of CHUNK."""
    batch, time, _width = hidden_states.shape
    mixed, b, a = net.in_proj_qkv(hidden_states), net.in_proj_b(hidden_states), net.in_proj_a(hidden_states)
    system, within, right, query, key, decay = net.prepare(
        mixed, b, a, net.conv1d.weight, net.A_log, net.dt_bias, net.num_k_heads, net.head_k_dim
    )
    solved = UnitLowerInverse.apply(system) @ right
    out = net.scan(within, solved, query, key, decay, net.head_v_dim)
    out = out.view(-1, batch, net.num_v_heads, CHUNK, net.head_v_dim).permute(1, 0, 3, 2, 4)
    gate = net.in_proj_z(hidden_states)
    out = net.norm(out.reshape(-1, net.head_v_dim).to(gate.dtype), gate.view(-1, net.head_v_dim))
    return net.out_proj(out.view(batch, time, -1))


def install(compiled: bool) -> None:
    """Put these versions in the place of transformers' own, compiled where that pays."""
    wrap = torch.compile if compiled else (lambda function: function)
    qwen.Qwen3_5MoeSparseMoeBlock.forward = wrap(dense_moe)
    qwen.Qwen3_5MoeRMSNormGated.forward = wrap(qwen.Qwen3_5MoeRMSNormGated.forward)
    qwen.Qwen3_5MoeRMSNorm.forward = wrap(qwen.Qwen3_5MoeRMSNorm.forward)
    qwen.Qwen3_5MoeGatedDeltaNet.prepare = staticmethod(wrap(prepare))
    qwen.Qwen3_5MoeGatedDeltaNet.scan = staticmethod(wrap(scan))
    qwen.Qwen3_5MoeGatedDeltaNet.forward = delta_net
