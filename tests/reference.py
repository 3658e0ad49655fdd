"""The whole model in float64 numpy, one token at a time: an independent rendering of the published mathematics.

It reads a pack through the pack's reader and the plain dequantizer of tests/oracle.py, and nothing of the engine.
"""

from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from oracle import expert_matrix, trunk_tensors

from moepack.layout.reader import Pack
from moepack.layout.record import PROJECTIONS

LARGEST = float(np.finfo(np.float32).max)

Floats = np.ndarray


def close(got: np.ndarray, wanted: np.ndarray, tolerance: float = 2e-6) -> bool:
    """Within `tolerance` of the largest value: float32 sums of a few hundred terms."""
    return bool(np.abs(got - wanted.reshape(got.shape)).max() <= tolerance * max(1.0, np.abs(wanted).max()))


def sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))


def silu(x: Floats) -> Floats:
    return x * sigmoid(x)


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def l2_norm(x: Floats) -> Floats:
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def rotate(x: Floats, position: int, dims: int, theta: float) -> Floats:
    """x [heads, head_dim]: dimensions i and i + dims / 2 turn by position * theta^(-2i / dims)."""
    angles = position * theta ** (-np.arange(0, dims, 2) / dims)
    first, second, rest = x[:, : dims // 2], x[:, dims // 2 : dims], x[:, dims:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], -1)


def attend(query: Floats, keys: Floats, values: Floats) -> Floats:
    """query [heads, dim]; keys and values [positions, kv_heads, dim]."""
    group = len(query) // keys.shape[1]
    out = np.empty_like(query)
    for head in range(len(query)):
        scores = keys[:, head // group] @ query[head] / np.sqrt(query.shape[1])
        shares = np.exp(scores - scores.max())
        out[head] = shares / shares.sum() @ values[:, head // group]
    return out


def delta_step(memory: Floats, query: Floats, key: Floats, value: Floats, decay: Floats, beta: Floats) -> Floats:
    """One step of the gated delta rule for all value heads; `memory` [heads, key_dim, value_dim] advances in place."""
    memory *= decay[:, None, None]
    change = (value - np.einsum("hkv,hk->hv", memory, key)) * beta[:, None]
    memory += key[:, :, None] * change[:, None, :]
    return np.einsum("hkv,hk->hv", memory, query)


def choose(logits: Floats, k: int) -> tuple[Floats, Floats]:
    """The router: ids of the k largest probabilities, ties to the lower id, and their renormalised weights.

    Infinite logits count as the largest finite ones, what is not a number as the least.
    """
    logits = np.nan_to_num(logits, nan=-LARGEST, posinf=LARGEST, neginf=-LARGEST)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    ids = np.argsort(-probabilities, kind="stable")[:k]
    return ids, probabilities[ids] / probabilities[ids].sum()


def expert_matrices(path: Path, layer: int, expert: int) -> list[Floats]:
    """An expert's gate, up and down."""
    with Pack.open(path) as pack:
        record, layout = pack.read_record(layer, expert), pack.records[layer]
    return [expert_matrix(record, layout, name).astype(np.float64) for name in PROJECTIONS]


class Reference:
    """Runs a pack token by token; `step` returns float64 logits. At most `kept` experts stay in memory, None is all."""

    def __init__(self, path: Path, experts_per_token: int | None = None, kept: int | None = None) -> None:
        with Pack.open(path) as pack:
            self.model = pack.model
            self.w = {name: values.astype(np.float64) for name, values in trunk_tensors(pack)}
        self.expert = lru_cache(kept)(partial(expert_matrices, path))
        self.k = experts_per_token or self.model.num_experts_per_tok
        self.position = 0
        linear = self.model.linear_attention
        shape = (linear.num_value_heads, linear.key_head_dim, linear.value_head_dim)
        channels = 2 * linear.num_key_heads * linear.key_head_dim + linear.num_value_heads * linear.value_head_dim
        self.memory = [np.zeros(shape) for _ in self.model.layer_types]
        self.inputs = [np.zeros((linear.conv_kernel - 1, channels)) for _ in self.model.layer_types]
        self.keys: list[list[Floats]] = [[] for _ in self.model.layer_types]
        self.values: list[list[Floats]] = [[] for _ in self.model.layer_types]

    def step(self, token: int) -> Floats:
        x = self.w["model.embed_tokens.weight"][token]
        eps = self.model.rms_norm_eps
        for i, kind in enumerate(self.model.layer_types):
            p = f"model.layers.{i}"
            mix = self._full if kind == "full_attention" else self._linear
            x = x + mix(rms_norm(x, self.w[f"{p}.input_layernorm.weight"], eps), i)
            x = x + self._experts(rms_norm(x, self.w[f"{p}.post_attention_layernorm.weight"], eps), i)
        self.position += 1
        head = "model.embed_tokens.weight" if self.model.tie_word_embeddings else "lm_head.weight"
        return self.w[head] @ rms_norm(x, self.w["model.norm.weight"], eps)

    def _full(self, x: Floats, i: int) -> Floats:
        shape, p = self.model.full_attention, f"model.layers.{i}.self_attn"
        project = lambda name, heads: (self.w[f"{p}.{name}.weight"] @ x).reshape(heads, -1)  # noqa: E731
        query, gate = np.split(project("q_proj", shape.num_heads), 2, axis=1)
        norm = lambda y, name: rms_norm(y, self.w[f"{p}.{name}.weight"], self.model.rms_norm_eps)  # noqa: E731
        turn = lambda y: rotate(y, self.position, shape.rotary_dims, shape.rope_theta)  # noqa: E731
        self.keys[i].append(turn(norm(project("k_proj", shape.num_kv_heads), "k_norm")))
        self.values[i].append(project("v_proj", shape.num_kv_heads))
        mixed = attend(turn(norm(query, "q_norm")), np.stack(self.keys[i]), np.stack(self.values[i]))
        return self.w[f"{p}.o_proj.weight"] @ (mixed * sigmoid(gate)).reshape(-1)

    def _linear(self, x: Floats, i: int) -> Floats:
        shape, p = self.model.linear_attention, f"model.layers.{i}.linear_attn"
        window = np.concatenate([self.inputs[i], [self.w[f"{p}.in_proj_qkv.weight"] @ x]])
        self.inputs[i] = window[1:]
        mixed = silu((window * self.w[f"{p}.conv1d.weight"].T).sum(0))
        width = shape.num_key_heads * shape.key_head_dim
        query, key, value = np.split(mixed, [width, 2 * width])
        repeat = shape.num_value_heads // shape.num_key_heads
        heads = lambda y: np.repeat(l2_norm(y.reshape(shape.num_key_heads, -1)), repeat, 0)  # noqa: E731
        beta = sigmoid(self.w[f"{p}.in_proj_b.weight"] @ x)
        step = np.log1p(np.exp(self.w[f"{p}.in_proj_a.weight"] @ x + self.w[f"{p}.dt_bias"]))
        decay = np.exp(-np.exp(self.w[f"{p}.A_log"]) * step)
        scaled = heads(query) / np.sqrt(shape.key_head_dim)
        out = delta_step(self.memory[i], scaled, heads(key), value.reshape(shape.num_value_heads, -1), decay, beta)
        gate = (self.w[f"{p}.in_proj_z.weight"] @ x).reshape(out.shape)
        normed = rms_norm(out, self.w[f"{p}.norm.weight"], self.model.rms_norm_eps)
        return self.w[f"{p}.out_proj.weight"] @ (normed * silu(gate)).reshape(-1)

    def _experts(self, x: Floats, i: int) -> Floats:
        p = f"model.layers.{i}.mlp"
        out = np.zeros_like(x)
        for expert, share in zip(*choose(self.w[f"{p}.gate.weight"] @ x, self.k), strict=True):
            gate, up, down = self.expert(i, expert)
            out += share * (down @ (silu(gate @ x) * (up @ x)))
        gate, up, down = (self.w[f"{p}.shared_expert.{name}_proj.weight"] for name in PROJECTIONS)
        return out + sigmoid(self.w[f"{p}.shared_expert_gate.weight"] @ x) * (down @ (silu(gate @ x) * (up @ x)))
